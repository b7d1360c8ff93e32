"""The page of the Python API shows what is meant, and what it is worth."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe
import pytest

ROOT = Path(__file__).parents[2]
MODULES = {"ray_route.placement", "ray_route.errors"}


@pytest.fixture
def undisturbed() -> Iterator[None]:
    """Let no other thread run in the midst of what is computed here.

    Python 3.11 may fail to parse while another thread parses, too (python/cpython#106905).
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(60)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("undisturbed")
def test_names_are_no_modules_of_the_same_name_and_defaults_are_values():
    named = re.findall(r"(?m)^::: (\S+)", (ROOT / "docs" / "api.md").read_text())
    extensions = griffe.load_extensions(str(ROOT / "docs" / "griffe_defaults.py"))
    package = griffe.load("ray_route", search_paths=[ROOT], extensions=extensions)
    defaults = []
    for name in named:
        found = package[name.removeprefix("ray_route.")]
        assert found.is_module == (name in MODULES), name
        functions = found.all_members.values() if found.is_class else [found]
        for function in functions:
            if function.is_function:
                defaults += [str(parameter.default) for parameter in function.parameters]
    assert "60.0" in defaults
    assert [each for each in defaults if re.fullmatch("[A-Z_]{3,}", each)] == []
