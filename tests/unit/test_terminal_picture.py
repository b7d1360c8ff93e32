"""The moving picture of the demo: what a terminal shows becomes text, in time."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"


def loaded() -> Any:
    spec = importlib.util.spec_from_file_location("docs_terminal", ROOT / "docs" / "terminal.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


terminal = loaded()


def texts(picture: str) -> list[list[str]]:
    """Return the lines of each frame."""
    return [
        ["".join(text.itertext()) for text in group.iter(f"{SVG}text")]
        for group in ET.fromstring(picture).iter(f"{SVG}g")
    ]


def test_a_line_that_is_written_over_is_seen_before_and_after() -> None:
    written = [(0.5, b"half \x1b[32mgreen\x1b[0m"), (1.5, b"\r\x1b[2K<all>"), (2.0, b"\r\n")]
    shown = terminal.frames(written)
    picture = terminal.drawn(shown)
    said = [lines[1:] for lines in texts(picture)]
    assert ["half", "green"] in said
    assert said[-1] == ["<all>"]
    assert terminal._INK["green"] in picture
    assert shown[-1].seconds == terminal._LAST_S


def test_a_program_is_recorded_to_its_end() -> None:
    words = f'{Path(sys.executable).name} -c "print(1); print(2)"'
    assert b"".join(some for _, some in terminal.recorded(words)).split() == [b"1", b"2"]


def test_the_picture_in_the_page_ends_with_a_verdict_that_all_holds() -> None:
    frames = texts(terminal.PICTURE.read_text())
    assert len(frames) > 5
    assert sum(line.startswith("✓") for line in frames[-1]) == 5
    assert not any(line.startswith("✗") for line in frames[-1])
