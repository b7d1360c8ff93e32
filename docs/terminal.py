"""The demo as a moving picture of a terminal: `python docs/terminal.py` runs it and draws it.

The command runs in a terminal of its own; what its screen showed, and when, becomes an SVG that
moves by itself. Needs `pyte`, a terminal in Python.
"""
# ruff: noqa: INP001 - a program beside the pages, and no package

from __future__ import annotations

import contextlib
import os
import pty
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

import pyte

PICTURE = Path(__file__).parent / "pictures" / "demo.svg"
COMMAND = "ray-route demo --kill --scale-out --seed 0"
COLUMNS, LINES = 110, 30

_MOST_FRAMES = 40
_LAST_S = 12.0  # the verdict is there to be read
_LONGEST_S = 1.5  # nobody wants to watch a start
_SIZE, _WIDE, _HIGH, _EDGE = 14, 8.43, 19, 16
_INK = {
    "default": "#d7dde6",
    "green": "#7ee2a0",
    "red": "#ff8f86",
    "magenta": "#d59bff",
    "yellow": "#f5cf70",
    "brown": "#f5cf70",
    "cyan": "#7fd4e8",
    "blue": "#86aaff",
}


@dataclass(frozen=True)
class Frame:
    """What a screen showed, and for how many seconds: runs of one colour, line by line."""

    lines: tuple[tuple[tuple[int, str, str], ...], ...]
    seconds: float


def recorded(command: str) -> list[tuple[float, bytes]]:
    """Run a command in a terminal; return what it wrote, and when."""
    began, written = time.monotonic(), list[tuple[float, bytes]]()
    name, *words = shlex.split(command)
    program = Path(sys.executable).with_name(name)
    size = {"COLUMNS": f"{COLUMNS}", "LINES": f"{LINES}", "TERM": "xterm-256color"}
    ours, its = pty.openpty()
    with subprocess.Popen(  # noqa: S603 - our own command
        [program, *words], stdin=its, stdout=its, stderr=its, env={**os.environ, **size}
    ):
        os.close(its)
        # A terminal's way to say that nobody is there any more is an error.
        with contextlib.suppress(OSError):
            while some := os.read(ours, 65536):
                written.append((time.monotonic() - began, some))
    os.close(ours)
    return written


def frames(written: list[tuple[float, bytes]]) -> list[Frame]:
    """Return what the screen showed, a bounded number of times."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    every = max(0.1, written[-1][0] / _MOST_FRAMES)
    shown = [(0.0, typed(screen))]
    for at, some in written:
        stream.feed(some)
        if at - shown[-1][0] >= every:
            shown.append((at, typed(screen)))
    shown.append((written[-1][0], typed(screen)))
    ends = [at for at, _ in shown[1:]] + [shown[-1][0] + _LAST_S]
    return [
        Frame(lines, min(end - at, _LONGEST_S if number + 1 < len(shown) else _LAST_S))
        for number, ((at, lines), end) in enumerate(zip(shown, ends, strict=True))
    ]


def typed(screen: pyte.Screen) -> tuple[tuple[tuple[int, str, str], ...], ...]:
    """Return the lines of a screen below the command, as runs of one colour."""
    command = ((0, f"$ {COMMAND}", "default"),)
    return (command, *(tuple(_runs(screen.buffer[line])) for line in range(LINES)))


def _runs(line: dict[int, pyte.screens.Char]) -> Iterator[tuple[int, str, str]]:
    cells = [(column, line[column]) for column in range(COLUMNS)]
    for colour, group in groupby(cells, lambda cell: cell[1].fg):
        run = list(group)
        text = "".join(cell.data for _, cell in run)
        if text.strip():
            yield run[0][0] + len(text) - len(text.lstrip()), text.strip(), colour


def drawn(shown: list[Frame]) -> str:
    """Draw frames as an SVG that shows one after the other, for ever.

    Who wants no motion sees the last.
    """
    whole = sum(frame.seconds for frame in shown)
    width, height = round(COLUMNS * _WIDE + 2 * _EDGE), (LINES + 1) * _HIGH + 2 * _EDGE
    rules, parts, at = [], [], 0.0
    for number, frame in enumerate(shown):
        start, at = at, at + frame.seconds
        rules.append(_shown_from(number, 100 * start / whole, 100 * at / whole, whole))
        last = " last" * (number + 1 == len(shown))
        parts.append(f'<g class="f f{number}{last}">{"".join(_texts(frame))}</g>')
    style = (
        ".f{visibility:hidden}text{white-space:pre}"
        + "".join(rules)
        + "@media(prefers-reduced-motion:reduce){.f{animation:none}.last{visibility:visible}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" font-family="ui-monospace,Menlo,Consolas,monospace" '
        f'font-size="{_SIZE}"><title>{escape(COMMAND)}, as it ran</title><style>{style}</style>'
        f'<rect width="{width}" height="{height}" rx="10" fill="#151b24"/>'
        + "\n".join(parts)
        + "</svg>\n"
    )


def _shown_from(number: int, start: float, end: float, whole: float) -> str:
    steps = f"0%,{start:.3f}%{{visibility:hidden}}" if number else ""
    on = f"{start + 0.001:.3f}%,{end:.3f}%{{visibility:visible}}"
    off = f"{end + 0.001:.3f}%,100%{{visibility:hidden}}" if end < 99.99 else ""
    name = f"@keyframes k{number}{{{steps}{on}{off}}}"
    return f"{name}.f{number}{{animation:k{number} {whole:.1f}s step-end infinite}}"


def _texts(frame: Frame) -> Iterator[str]:
    for number, line in enumerate(frame.lines):
        y = _EDGE + _HIGH * (number + 1) - 5
        for column, text, colour in line:
            x, wide = _EDGE + column * _WIDE, len(text) * _WIDE
            ink = _INK.get(colour) or f"#{colour}"  # or one of the 256, in hexadecimal
            size = f'x="{x:.1f}" y="{y}" textLength="{wide:.1f}"'
            yield f'<text {size} fill="{ink}">{escape(text)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(drawn(frames(recorded(COMMAND))))
