"""Who deploys while another thread parses Python gets the text of the class all the same."""

from __future__ import annotations

import ast
import gc
import inspect
from collections.abc import Iterator

import pytest
from services import Counter

from ray_route.controller import recipe


@pytest.fixture
def parsed_beside() -> Iterator[list[int]]:
    """Others parse too, at points within a parse: as often as is said here."""
    left = [0]

    def parse(phase: str, _: object) -> None:
        if phase == "stop" and left[0] > 0:
            left[0] -= 1
            ast.parse("x = 1")

    before = gc.get_threshold()
    gc.callbacks.append(parse)
    gc.set_threshold(50)
    yield left
    gc.set_threshold(*before)
    gc.callbacks.remove(parse)


def test_a_class_is_read_though_another_thread_parses(parsed_beside: list[int]) -> None:
    text = inspect.getsource(Counter).encode()
    for times in (1, 10, 100, 1_000):
        parsed_beside[0] = times
        assert recipe._source(Counter) == text
    parsed_beside[0] = 0


def test_a_class_without_a_text_has_none() -> None:
    assert recipe._source(type("Made", (), {})) is None
