"""A terminal of a given width, in which commands of this process print, and what is read there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest

_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_BORDER = re.compile("[│┃]")


class Terminal:
    """What was printed in a terminal."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self._read = bytearray()

    def feed(self, some: bytes) -> None:
        """Take in what was printed."""
        self._read += some

    @property
    def lines(self) -> list[str]:
        text = _SEQUENCE.sub("", self._read.decode())
        return [line for part in text.split("\n") for line in part.split("\r") if line]

    def cells(self) -> list[str]:
        """Return each column of each table, from top to bottom, folded cells whole again."""
        tables: list[list[list[str]]] = [[]]
        for line in self.lines:
            if _BORDER.search(line):
                tables[-1].append([cell.strip() for cell in _BORDER.split(line)[1:-1]])
            elif line[0] in "└┏":
                tables.append([])
        return ["".join(column) for rows in tables for column in zip(*rows, strict=True)]

    def check_whole(self, *texts: object) -> None:
        """Check that no table is wider than the terminal, nothing is cut, and all these are there.

        What is not in a table may be longer, to be copied: the terminal shows it on several lines.
        """
        rows = [line for line in self.lines if _BORDER.search(line)]
        assert max(map(len, rows), default=0) <= self.columns, "\n".join(rows)
        assert "…" not in "".join(self.lines), "\n".join(self.lines)
        read = [*self.cells(), *self.lines, "".join(self.lines)]
        for text in map(str, texts):
            assert any(text in part for part in read), (text, self.lines)


@contextmanager
def terminal(columns: int = 80) -> Iterator[tuple[Terminal, TextIO]]:
    """Open one; provide what is read of it, and where to print. All has been read at the end."""
    shown, (ours, theirs) = Terminal(columns), pty.openpty()
    tty.setraw(theirs)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    reader = threading.Thread(target=_read, args=(ours, shown), daemon=True)
    reader.start()
    with os.fdopen(theirs, "w", encoding="utf-8") as screen:
        yield shown, screen
    reader.join()
    os.close(ours)


@contextmanager
def printed(patch: pytest.MonkeyPatch, columns: int = 80) -> Iterator[Terminal]:
    """Have what this process prints go to a terminal."""
    with terminal(columns) as (shown, screen), patch.context() as patched:
        patched.setenv("COLUMNS", str(columns))
        patched.setenv("TERM", "xterm")
        patched.setattr(sys, "stdout", screen)
        patched.setattr(sys, "stderr", screen)
        yield shown


def _read(ours: int, shown: Terminal) -> None:
    while True:
        try:
            some = os.read(ours, 65_536)
        except OSError:  # nobody prints there any more
            return
        if not some:
            return
        shown.feed(some)
