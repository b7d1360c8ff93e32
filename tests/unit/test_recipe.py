"""Who deploys while another thread parses Python gets the text of the class all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ray_route.controller import recipe

# In a process of its own: what disturbs a parse there must disturb nobody else's.
DISTURBED = """
import ast, gc, inspect
from services import Counter
from ray_route.controller import recipe
text, left = inspect.getsource(Counter).encode(), 0
def parse_too(phase, _):
    global left
    if phase == "stop" and left:
        left -= 1
        ast.parse("x = 1")
gc.callbacks.append(parse_too)
gc.set_threshold(50)
for times in range(1, 6):  # as another thread would, at so many points within a parse
    left = times
    assert recipe._source(Counter) == text
"""


@pytest.mark.slow
def test_a_class_is_read_though_another_thread_parses() -> None:
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", DISTURBED], cwd=tests, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_class_without_a_text_has_none() -> None:
    assert recipe._source(type("Made", (), {})) is None
