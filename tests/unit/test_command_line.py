"""What a user sees of the command line without a cluster."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from rich.console import Console

from ray_route.cli.app import main
from ray_route.cli.output import (
    POD_COLUMNS,
    console,
    digits_apart,
    output_alone,
    pod_rows,
    print_json,
    table,
)
from ray_route.model import Life, Pod, RoutingState

bench = import_module("ray_route.cli.bench")  # the package has a command of that name

INCARNATIONS = (1795725853419123, 1795725853419124)
NODE = "a4" * 27 + "f"


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(words)
    out, err = capsys.readouterr()
    return int(str(ended.value.code)), out + err


def test_the_summaries_of_commands_are_whole_sentences(capsys: pytest.CaptureFixture[str]):
    status, text = said(["--help"], capsys)
    assert status == 0
    listed = text.partition("Commands:")[2]
    assert listed.count("\n  ") >= 10
    assert "..." not in listed
    assert "…" not in listed


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_digit_is_lost_in_a_narrow_terminal(width: int):
    pods = [
        Pod(
            pod=pod,
            state=RoutingState.DENY_NEW,
            life=Life.ALIVE,
            load=1234.5,
            links=1_000_000,
            node=NODE + str(pod),
            actor=f"ray_route:game:conversations:{pod}",
            incarnation=incarnation,
            heartbeat_age_s=0.3,
        )
        for pod, incarnation in enumerate(INCARNATIONS)
    ]
    narrow = Console(width=width, highlight=False)
    with narrow.capture() as shown:
        narrow.print(table(POD_COLUMNS, pod_rows(("conversations", pod) for pod in pods)))
    text = shown.get()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    lines = [re.split("[│┃]", line) for line in text.splitlines() if "│" in line]
    node, incarnation = ("".join(cells[at].strip() for cells in lines) for at in (-3, -2))
    assert incarnation == "".join(map(str, INCARNATIONS))
    assert node == f"{NODE}0{NODE}1"


def test_of_a_node_as_many_digits_are_shown_as_tell_it_from_the_others():
    assert digits_apart([]) == digits_apart(["a" * 56, "b" * 56, "b" * 56]) == 12
    assert digits_apart([NODE + "0", "b" * 56, NODE + "1"]) == 56
    assert digits_apart(["", "a" * 20 + "0" * 36, "a" * 20 + "1" * 36]) == 21


def test_a_picture_that_can_not_be_drawn_is_refused_before_the_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(bench, "find_spec", lambda _: None)
    monkeypatch.setattr(bench, "run", lambda *_: pytest.fail("it has run"))
    status, text = said(["bench", "--out", str(tmp_path / "result")], capsys)
    assert status == 2
    assert "pip install matplotlib" in text
    assert list(tmp_path.iterdir()) == []


def test_what_others_print_meanwhile_is_not_among_what_a_program_reads(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with output_alone():
        print("(raylet) WARNING: 13 workers have been started")
        print_json({"pods": 2})
        console().print("2 pods")
    out, err = capsys.readouterr()
    assert out == '{"pods": 2}\n2 pods\n'
    assert "13 workers" in err
