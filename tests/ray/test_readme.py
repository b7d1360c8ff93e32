"""The README's example runs as printed, and what it names is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from alone import ALONE, plain, why_not

import ray_route

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def example() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    return str(code)


@pytest.mark.skipif(why_not() is not None, reason=f"nobody can be alone here: {why_not()}")
def test_the_example_runs_as_printed(tmp_path: Path) -> None:
    """In a plain shell; it warns its reader of nothing."""
    script = tmp_path / "example.py"
    script.write_text(example())
    done = subprocess.run(
        [*ALONE, sys.executable, str(script)],
        env=plain(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = re.search(r"It prints `(.+?)`", README)
    assert expected
    assert expected[1] in done.stdout.splitlines(), done
    assert "Deprecat" not in done.stdout + done.stderr
    assert "change stream" not in done.stdout + done.stderr, "no last word of what ends with Ray"


def test_the_example_is_short() -> None:
    assert len([line for line in example().splitlines() if line]) <= 14


def test_the_names_in_the_table_of_methods_are_the_apis() -> None:
    methods = re.findall(r"client\.(\w+)\(", README)
    assert methods
    assert all(hasattr(ray_route.RouteClient, name) for name in methods)
    assert all(
        hasattr(ray_route.Deployment, name) for name in re.findall(r"deployment\.(\w+)", README)
    )
    assert all(hasattr(ray_route, name) for name in re.findall(r"ray_route\.(\w+)\(", README))


def test_the_files_and_targets_that_it_names_are_there() -> None:
    folder = README.partition("```\nray_route/\n")[2].partition("```")[0]
    files = re.findall(r"\w+\.py", folder)
    assert files
    assert [name for name in files if not (ROOT / "ray_route" / name).exists()] == []
    targets = re.findall(r"(?m)(?:^|`)make (\w+)", README)
    makefile = (ROOT / "Makefile").read_text()
    assert [name for name in targets if f"\n{name}:" not in makefile] == []
