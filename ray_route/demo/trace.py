"""Logs of events to replay: read from a file, or drawn from a Zipf distribution."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from pathlib import Path

from ray_route.errors import InvalidInputError
from ray_route.model import check_uid

# The size of the message log that the demo is usually shown with.
EVENTS = 59_835
PEOPLE = 1_899

_EVENT = "`src dst unix-seconds`"
_SHOWN_CHARACTERS = 60


class TraceError(Exception):
    """A trace can't be replayed. Says in which file and line, and what was expected there."""

    def __init__(self, path: Path, line: int | None, reason: str) -> None:
        self.path, self.line = path, line
        where = str(path) if line is None else f"{path}:{line}"
        super().__init__(f"{where}: {reason}")


@dataclass(frozen=True, slots=True)
class Trace:
    """A log of events, in order. Event i is for `recipients[i]`."""

    name: str
    recipients: tuple[str, ...]

    def __str__(self) -> str:
        people = len(set(self.recipients))
        return f"{self.name}: {len(self.recipients):,} events for {people:,} uids"


def read_trace(path: Path) -> Trace:
    """Read and check a whole log: a header line, then `src dst unix-seconds` a line.

    Raises `TraceError` if it is unreadable or any line of it is malformed.
    """
    header, *lines = _text(path).removesuffix("\n").split("\n")
    _check_header(path, header)
    if not lines:
        raise TraceError(path, 2, f"expected events, {_EVENT} a line; there are none")
    events = enumerate(lines, start=2)
    return Trace(str(path), tuple(_recipient(path, number, line) for number, line in events))


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TraceError(path, None, f"can't be read: {error.strerror or error}") from error
    if not data:
        raise TraceError(path, None, f"is empty; expected a header line, then {_EVENT} a line")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TraceError(path, line, f"expected text in UTF-8, then {_EVENT} a line") from error


def _check_header(path: Path, line: str) -> None:
    """Refuse a log without a header: its first event would be skipped in silence."""
    names = line.split()
    if len(names) != 3 or _is_number(names[2]) or not "".join(names).isprintable():
        raise TraceError(path, 1, f"expected a header line `src dst time`, found {_shown(line)}")


def _recipient(path: Path, number: int, line: str) -> str:
    fields = line.split()
    if len(fields) != 3:
        found = f"{len(fields)} columns: {_shown(line)}" if fields else "an empty line"
        raise TraceError(path, number, f"expected {_EVENT}, found {found}")
    source, recipient, time = fields
    if not _is_number(time):
        raise TraceError(path, number, f"expected a whole number of seconds, found {_shown(time)}")
    for column, uid in (("src", source), ("dst", recipient)):
        _check_person(path, number, column, uid)
    return recipient


def _check_person(path: Path, number: int, column: str, uid: str) -> None:
    if not uid.isprintable():
        raise TraceError(path, number, f"{column} holds unprintable characters: {_shown(uid)}")
    try:
        check_uid(uid)
    except InvalidInputError as error:
        raise TraceError(path, number, f"{column} {error.reason}, found {_shown(uid)}") from error


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _shown(text: str) -> str:
    short = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
    return ascii(short)


def zipf_trace(seed: int, events: int = EVENTS, people: int = PEOPLE) -> Trace:
    """Draw a log in which the n-th most popular person gets 1/n of the first one's events."""
    cumulated = list(itertools.accumulate(1 / rank for rank in range(1, people + 1)))
    names = [str(number) for number in range(1, people + 1)]
    draw = random.Random(seed)  # noqa: S311 - a log that can be drawn again, no secret
    drawn = draw.choices(names, cum_weights=cumulated, k=events)
    return Trace(f"a Zipf-distributed log (--seed {seed})", tuple(drawn))
