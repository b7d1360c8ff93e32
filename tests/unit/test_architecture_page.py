"""The architecture page: its pictures are what their source draws, and its paths are there."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ray_route"
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def loaded() -> Any:
    spec = importlib.util.spec_from_file_location("docs_pictures", ROOT / "docs" / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))  # as for a program that is run from there
        spec.loader.exec_module(module)
    return module


pictures = loaded()


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_picture_is_what_its_source_draws(name: str) -> None:
    file = ROOT / "docs" / "pictures" / f"{name}.svg"
    assert file.read_text() == pictures.PICTURES[name](), "run `python docs/pictures.py`"
    assert f"](pictures/{name}.svg)" in PAGE


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_all_that_is_written_is_within_its_picture(name: str) -> None:
    picture = ET.fromstring(pictures.PICTURES[name]())
    width, height = float(picture.attrib["width"]), float(picture.attrib["height"])
    for text in picture.iter("{http://www.w3.org/2000/svg}text"):
        at = {"start": 0.0, "middle": 0.5, "end": 1.0}[text.attrib["text-anchor"]]
        assert text.text
        wide = 0.61 * float(text.attrib["font-size"]) * len(text.text)
        left = float(text.attrib["x"]) - at * wide
        assert left >= 0, text.text
        assert left + wide <= width, text.text
        assert float(text.attrib["y"]) < height


def test_the_readme_shows_the_same_picture() -> None:
    assert "](docs/pictures/overview.svg)" in (ROOT / "README.md").read_text()


def test_the_scripts_and_commands_in_the_pictures_are_there() -> None:
    drawn = "".join(draw() for draw in pictures.PICTURES.values())
    scripts = set(re.findall(r"\w+\.lua", drawn))
    assert len(scripts) >= 5
    assert [name for name in scripts if not (PACKAGE / "store" / "lua" / name).exists()] == []


def test_the_paths_that_the_page_names_are_there() -> None:
    paths = re.findall(r"`([a-z_]+(?:/[a-z_]*)*(?:\.py|\.lua|/))`", PAGE)
    assert len(paths) > 40
    assert [path for path in paths if not (PACKAGE / path).exists()] == []


def test_the_page_lists_every_room() -> None:
    listed = PAGE.partition("```text\nray_route/\n")[2].partition("```")[0]
    named = set(re.findall(r"(?m)\b(\w+)(?:\.py|/)(?=\s)", listed))
    there = {
        path.stem
        for path in PACKAGE.iterdir()
        if not path.name.startswith("_")
        and (path.suffix == ".py" or (path / "__init__.py").exists())
    }
    assert named - {"lua"} == there


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md"])
def test_what_the_pages_at_the_root_name_is_there(name: str) -> None:
    text = (ROOT / name).read_text()
    makefile = (ROOT / "Makefile").read_text()
    assert [it for it in re.findall(r"`make (\w+)`", text) if f"\n{it}:" not in makefile] == []
    paths = [
        *re.findall(r"`((?:ray_route|tests|docs|deploy|benchmarks)/[\w./]*)`", text),
        *re.findall(r"\]\(([\w./]+)\)", text),
    ]
    assert paths
    assert [
        it
        for it in paths
        if it.endswith((".py", ".md", "/", ".json", "LICENSE")) and not (ROOT / it).exists()
    ] == []
