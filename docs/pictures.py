"""The pictures of the architecture page and of the README, as SVG: `python docs/pictures.py`.

What a picture says stands as data here and in `stories.py`; where it is drawn is worked out, so
that a change of the words needs no drawing. The files in `pictures/` are what this program writes,
and a test says so.
"""
# ruff: noqa: INP001 - a program beside the pages, and no package

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path

from stories import STORIES, Chapter, Note, Step

FOLDER = Path(__file__).parent / "pictures"

_INK, _LINE = "#1f2937", "#374151"
_FILLS = {"ray": "#e8f0fe", "redis": "#fde8e8", "user": "#e7f6ec", "note": "#fff8e1"}
_EDGES = {"ray": "#5b8def", "redis": "#d9534f", "user": "#3a9d5d", "note": "#d6a400"}

_SIZE = 13
_LINE_HEIGHT = 17
# Wider than the letters of any font that is likely to be there.
_LETTER = 0.61 * _SIZE


# What is drawn.


@dataclass(frozen=True)
class Part:
    """A box of the overview: who it is, what it holds, where it stands."""

    title: str
    lines: tuple[str, ...]
    kind: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Flow:
    """An arrow of the overview along some points, with words beside it."""

    points: tuple[tuple[int, int], ...]
    words: tuple[str, ...]
    at: tuple[int, int]
    anchor: str = "middle"
    both: bool = False


PARTS = (
    Part(
        "Client process",
        (
            "a driver, task or actor;",
            "a Serve proxy or handle",
            "",
            "RouteClient",
            "near cache: links under lease",
            "change reader, pod table",
        ),
        "user",
        (20, 90, 260, 190),
    ),
    Part(
        "Router",
        (
            "one Ray actor per namespace,",
            "the only writer of links",
            "",
            "placer, moves, drains",
            "failure detector",
            "recovery after lost writes",
        ),
        "ray",
        (420, 90, 260, 190),
    ),
    Part(
        "Pods",
        (
            "actors of deploy();",
            "replicas of a Serve deployment",
            "",
            "your class, many uids each",
            "agent: index lease, gate,",
            "command loop",
        ),
        "user",
        (820, 90, 260, 190),
    ),
    Part("Batch tasks", ("stateless Ray tasks",), "ray", (20, 350, 180, 62)),
    Part(
        "Redis or Valkey",
        ("links, and a counter for each shard   ·   change stream   ·   pod tables",),
        "redis",
        (20, 500, 1060, 72),
    ),
)

FLOWS = (
    Flow(
        ((150, 90), (150, 50), (950, 50), (950, 90)),
        ("calls, each with the link's epoch and the pod's incarnation; results, or refusals",),
        (550, 38),
    ),
    Flow(((280, 180), (420, 180)), ("new uids, many", "in one call"), (350, 150)),
    Flow(((820, 180), (680, 180)), ("fetches its", "commands,", "reports use"), (750, 133)),
    Flow(((80, 280), (80, 350)), ("slices of uids",), (90, 319), "start"),
    Flow(((110, 412), (110, 500)), ("MGET: links", "as stored"), (120, 452), "start"),
    Flow(
        ((240, 500), (240, 280)),
        ("reads the change stream;", "single links, where asked"),
        (250, 386),
        "start",
    ),
    Flow(
        ((550, 280), (550, 500)),
        ("Lua scripts on links", "and pod tables; appends", "to the change stream"),
        (560, 386),
        "start",
        both=True,
    ),
    Flow(
        ((950, 280), (950, 500)),
        ("claims and renews", "its index; reads a uid's", "link at its first call"),
        (940, 378),
        "end",
        both=True,
    ),
)

# How it is drawn.


def overview() -> str:
    """Draw who talks to whom."""
    shapes = [shape for flow in FLOWS for shape in _flow(flow)]
    shapes += [shape for part in PARTS for shape in _part(part)]
    return _svg(1100, 592, "Who talks to whom", shapes)


def _part(part: Part) -> Iterator[str]:
    x, y, width, height = part.box
    yield _rect(x, y, width, height, part.kind)
    middle = x + width // 2
    yield _text(middle, y + 25, part.title, size=16, weight="bold")
    for number, line in enumerate(part.lines):
        if line:
            yield _text(middle, y + 50 + 22 * number, line, size=15)


def _flow(flow: Flow) -> Iterator[str]:
    yield _arrow(flow.points, both=flow.both)
    x, y = flow.at
    for number, line in enumerate(flow.words):
        yield _text(x, y + 18 * number, line, size=14, anchor=flow.anchor)


def story(title: str, parties: Sequence[str], steps: Sequence[Step]) -> str:
    """Draw who says what to whom, from top to bottom."""
    step_x = 215
    places = {name: 110 + step_x * number for number, name in enumerate(parties)}
    width = 220 + step_x * (len(parties) - 1)
    y, drawn = 66, list[str]()
    for step in steps:
        y, shapes = _step(step, y, places, width)
        drawn += shapes
    bottom = y + 10
    lines = [_lifeline(x, bottom) for x in places.values()]
    heads = [shape for name, x in places.items() for shape in _head(name, x)]
    return _svg(width, bottom + 10, title, [*lines, *drawn, *heads])


def _step(step: Step, y: int, places: dict[str, int], width: int) -> tuple[int, list[str]]:
    """Draw one step below `y`; return where it ends."""
    if isinstance(step, Chapter):
        title = _text(14, y + 23, step.title, size=14, weight="bold", anchor="start")
        band = f'<rect x="0" y="{y + 5}" width="{width}" height="26" fill="#f3f4f6"/>'
        return y + 40, [band, title]
    if isinstance(step, Note):
        lines = _wrapped(step.text, 190)
        height = _LINE_HEIGHT * len(lines) + 12
        x = places[step.party]
        words = _words(x, y + 20, lines, ground=False)
        return y + height + 14, [_rect(x - 100, y + 2, 200, height, "note"), *words]
    source, target = places[step.source], places[step.target]
    lines = _wrapped(step.text, abs(target - source) - 18)
    below = y + _LINE_HEIGHT * len(lines) + 6
    words = _words((source + target) // 2, y + 14, lines, ground=True)
    arrow = _arrow(((source, below), (target, below)), dashed=step.answer)
    return below + 14, [*words, arrow]


def _wrapped(text: str, width: float) -> list[str]:
    """Break a text into as few lines as fit, and these about as long as each other."""
    letters = max(10, int(width / _LETTER))
    lines = textwrap.wrap(text, letters)
    while len(shorter := textwrap.wrap(text, letters - 1)) == len(lines):
        lines, letters = shorter, letters - 1
    return lines


def _head(name: str, x: int) -> Iterator[str]:
    kind = {"Redis": "redis", "Router": "ray", "Controller": "ray"}.get(name, "user")
    yield _rect(x - 80, 12, 160, 34, kind)
    yield _text(x, 34, name, size=15, weight="bold")


def _lifeline(x: int, bottom: int) -> str:
    return f'<line x1="{x}" y1="46" x2="{x}" y2="{bottom}" stroke="#c4c9d1" stroke-width="1.5"/>'


def _words(x: int, y: int, lines: Sequence[str], *, ground: bool) -> Iterator[str]:
    """Write lines around `x`, on a ground of their own if a lifeline would run through them."""
    for number, line in enumerate(lines):
        at = y + _LINE_HEIGHT * number
        wide = int(0.56 * _SIZE * len(line))
        if ground:
            place = f'x="{x - wide // 2}" y="{at - _SIZE + 1}" width="{wide}" height="{_SIZE + 3}"'
            yield f'<rect {place} fill="#ffffff"/>'
        yield _text(x, at, line, size=_SIZE)


def _text(
    x: int, y: int, text: str, *, size: int, weight: str = "normal", anchor: str = "middle"
) -> str:
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{_INK}"'
    return f'<text x="{x}" y="{y}" {style}>{escape(text)}</text>'


def _rect(x: int, y: int, width: int, height: int, kind: str) -> str:
    place = f'x="{x}" y="{y}" width="{width}" height="{height}" rx="8"'
    return f'<rect {place} fill="{_FILLS[kind]}" stroke="{_EDGES[kind]}" stroke-width="1.5"/>'


def _arrow(points: Sequence[tuple[int, int]], *, dashed: bool = False, both: bool = False) -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    dash = ' stroke-dasharray="6 4"' * dashed
    start = ' marker-start="url(#head)"' * both
    style = f'fill="none" stroke="{_LINE}" stroke-width="1.6"{dash}{start}'
    return f'<polyline points="{path}" {style} marker-end="url(#head)"/>'


def _svg(width: int, height: int, title: str, shapes: Sequence[str]) -> str:
    head = (
        '<marker id="head" viewBox="0 0 10 10" refX="9.5" refY="5" markerWidth="8" '
        f'markerHeight="8" orient="auto-start-reverse"><path d="M0 0 10 5 0 10z" fill="{_LINE}"/>'
        "</marker>"
    )
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    fonts = "font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" {fonts}>',
        f"<title>{escape(title)}</title>",
        f"<defs>{head}</defs>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
        *shapes,
        "</svg>\n",
    ]
    return "\n".join(lines)


PICTURES: dict[str, Callable[[], str]] = {
    "overview": overview,
    **{name: partial(story, *told) for name, told in STORIES.items()},
}


def main() -> None:
    """Write all pictures."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw())


if __name__ == "__main__":
    main()
