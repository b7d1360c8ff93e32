"""Logs: what is read from a file, what is refused and how, and what is drawn."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from ray_route.demo.trace import EVENTS, PEOPLE, TraceError, read_trace, zipf_trace

HEADER = "src dst time\n"


@pytest.fixture
def write(tmp_path: Path):
    def to_file(content: str | bytes) -> Path:
        path = tmp_path / "log.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file


def refusal(path: Path) -> str:
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    return str(caught.value)


def test_events_go_to_the_second_column_in_order(write):
    path = write(HEADER + "1 2 1082040961\n3 4 1082155839\n5 2 1082414391\n")
    assert read_trace(path).recipients == ("2", "4", "2")


@pytest.mark.parametrize(
    "content",
    [
        HEADER + "1 2 3",
        "\ufeff" + HEADER + "1 2 3\n",
        HEADER.replace("\n", "\r\n") + "1 2 3\r\n",
        "a\tb\tc\n1\t2\t3\n",
        HEADER + "  1   2 3  \n",
    ],
    ids=["no last newline", "byte order mark", "CRLF", "tabs", "more spaces"],
)
def test_what_editors_and_tools_do_to_text_is_no_error(write, content):
    assert read_trace(write(content)).recipients == ("2",)


def test_people_need_not_be_numbers(write):
    assert read_trace(write(HEADER + "zoë 山田 0\n")).recipients == ("山田",)


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("1 2 3\n4 5 6\n", 1, "expected a header line `src dst time`, found '1 2 3'"),
        ("src dst\n1 2 3\n", 1, "expected a header line"),
        ("\n1 2 3\n", 1, "expected a header line `src dst time`, found ''"),
        (HEADER, 2, "expected events, `src dst unix-seconds` a line; there are none"),
        (HEADER + "1 2 3\n1 2\n", 3, "found 2 columns: '1 2'"),
        (HEADER + "1 2 3 4\n", 2, "found 4 columns: '1 2 3 4'"),
        (HEADER + "1,2,3\n", 2, "expected `src dst unix-seconds`, found 1 columns: '1,2,3'"),
        (HEADER + "1 2 3\n\n1 2 3\n", 3, "found an empty line"),
        (HEADER + "1 2 3\n\n", 3, "found an empty line"),
        (HEADER + "1 2 now\n", 2, "expected a whole number of seconds, found 'now'"),
        (HEADER + "1 2 -3\n", 2, "expected a whole number of seconds, found '-3'"),
        (HEADER + "1 2 3.5\n", 2, "expected a whole number of seconds, found '3.5'"),
        (HEADER + "1 2 1_0\n", 2, "expected a whole number of seconds, found '1_0'"),
        (HEADER + "1 2 \uff13\n", 2, r"found '\uff13'"),
        (HEADER + f"1 {'x' * 513} 3\n", 2, "dst must have 1 to 512 bytes in UTF-8"),
        (HEADER + f"{'x' * 513} 1 3\n", 2, "src must have 1 to 512 bytes in UTF-8"),
        (HEADER + "1 2\x003 4\n", 2, r"dst holds unprintable characters: '2\x003'"),
        (HEADER.encode() + b"1 2 3\n1 \xff 3\n", 3, "expected text in UTF-8"),
        (b"\x1f\x8b\x08\x00rest of a gzip file\n", 1, "expected text in UTF-8"),
        (b"\x7fELF\x02\x01\x01\x00\x00\x00 a b\n", 1, r"found '\x7fELF\x02"),
    ],
)
def test_a_malformed_log_is_refused_with_file_line_and_reason(write, content, line, reason):
    path = write(content)
    said = refusal(path)
    assert said.startswith(f"{path}:{line}: ")
    assert reason in said
    assert "\n" not in said
    assert said.isprintable()


def test_an_empty_file_is_refused(write):
    path = write("")
    assert refusal(path).startswith(f"{path}: is empty; expected a header line")


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    assert (
        refusal(tmp_path / "no") == f"{tmp_path / 'no'}: can't be read: No such file or directory"
    )
    assert refusal(tmp_path) == f"{tmp_path}: can't be read: Is a directory"


def test_a_long_line_is_shown_in_short(write):
    assert len(refusal(write(HEADER + "x" * 100_000 + "\n"))) < 300


def test_a_drawn_log_is_as_large_as_the_real_one_and_quickly_drawn():
    began = time.process_time()
    trace = zipf_trace(1)
    assert time.process_time() - began < 2
    assert len(trace.recipients) == EVENTS
    assert 1_700 < len(set(trace.recipients)) <= PEOPLE


def test_a_drawn_log_is_the_same_for_the_same_seed_alone():
    assert zipf_trace(7) == zipf_trace(7)
    assert zipf_trace(7).recipients != zipf_trace(8).recipients
    assert "--seed 7" in str(zipf_trace(7))


def test_the_nth_most_popular_gets_about_an_nth():
    counts = Counter(zipf_trace(3).recipients)
    first = counts["1"]
    for rank in (2, 3, 5, 10, 50):
        assert 0.8 < counts[str(rank)] * rank / first < 1.25


@pytest.mark.shared_data
def test_the_real_log_is_read_whole():
    trace = read_trace(Path(__file__).parents[3] / "shared" / "data" / "college_msg.txt")
    assert len(trace.recipients) == EVENTS
    assert str(trace).endswith("college_msg.txt: 59,835 events for 1,862 uids")
