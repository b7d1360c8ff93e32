"""Rules that every file keeps: short files, small classes, and tests that wait for something."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_LINES = 400
MOST_METHODS = 20
SLEEPS = {"asyncio.sleep", "time.sleep"}
FACES = {"AsyncRouteClient", "PodAgent", "RouteClient", "Router"}
"""What others call by name: as many methods as there is to ask for."""


def files(folder: str, pattern: str = "*.py") -> list[Path]:
    return sorted((ROOT / folder).rglob(pattern))


def parsed(file: Path) -> ast.Module:
    """Parse a file once more if something has parsed in its midst: CPython 3.11 mixes them up."""
    try:
        return ast.parse(file.read_text())
    except SystemError:
        return ast.parse(file.read_text())


@cache
def classes() -> dict[str, int]:
    """Return how many methods each class of the package has, properties and all."""
    found = {}
    for file in files("ray_route"):
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.ClassDef):
                own = [each for each in node.body if isinstance(each, FUNCTIONS)]
                found[node.name] = max(len(own), found.get(node.name, 0))
    return found


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def test_no_file_is_long() -> None:
    lines = {file: len(file.read_text().splitlines()) for file in files("ray_route")}
    assert lines
    assert [f"{file}: {count}" for file, count in lines.items() if count > MOST_LINES] == []


def test_no_class_is_large() -> None:
    few = {name: count for name, count in classes().items() if name not in FACES}
    assert {name: count for name, count in few.items() if count > MOST_METHODS} == {}


def sleeps(file: Path) -> Iterator[int]:
    """Give the lines on which somebody sleeps; to yield by `sleep(0)` is none."""
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in SLEEPS:
            yield from [] if ast.unparse(node.args[0]) == "0" else [node.lineno]


def test_a_test_that_sleeps_says_why() -> None:
    """What is waited for is waited for by `eventually` or `soon`; the rest says what it is."""
    found = []
    for file in files("tests", "test_*.py"):
        lines = file.read_text().splitlines()
        if not any("sleep" in line for line in lines):
            continue
        silent = (number for number in sleeps(file) if "  # " not in lines[number - 1])
        found += [f"{file.relative_to(ROOT)}:{number}" for number in silent]
    assert found == []
