"""A class that a command names is imported, and what is of its folder travels along."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest
from helpers import unique_name
from ray import cloudpickle

from ray_route.cli.keep import _imported


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.mark.parametrize("line", ["1 / 0", "raise SystemExit(3)", "import nothing_here", "x ="])
def test_whatever_a_module_raises_is_an_error_that_says_so(here: Path, line: str) -> None:
    name = unique_name()
    (here / f"{name}.py").write_text(line)
    with pytest.raises(click.BadParameter, match="can't be imported"):
        _imported(f"{name}:Class")


@pytest.mark.parametrize(("folder", "travels"), [("", True), ("venv/lib/site-packages", False)])
def test_modules_of_the_folder_travel_and_installed_ones_do_not(
    here: Path, monkeypatch: pytest.MonkeyPatch, folder: str, *, travels: bool
) -> None:
    name = unique_name()
    (here / folder).mkdir(parents=True, exist_ok=True)
    (here / folder / f"{name}.py").write_text("class Class: pass")
    monkeypatch.syspath_prepend(str(here / folder))
    _imported(f"{name}:Class")
    assert (name in cloudpickle.list_registry_pickle_by_value()) == travels
