"""No Ray call of ours is left to fail unseen: Ray prints such errors, with their tracebacks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ray_route

HERE = Path(ray_route.__file__).parent
# These look after what they wait for themselves.
THEIR_OWN_WAY = {
    "runtime/unseen.py": "it is the way",
    "runtime/waiting.py": "gives up what it no longer waits for",
    "client/responses.py": "the answers of users' calls, see client/untaken.py",
    "client/untaken.py": "the same",
    "pod/arguments.py": "the reference is the user's",
    "pod/peers.py": "a late state may be large: it is not to be fetched for nothing",
    "bench/run.py": "it fails as a whole then",
}


def dropped(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that call an actor or a task and drop the reference."""
    for node in ast.walk(tree):
        is_call = isinstance(node, ast.Expr) and _method(node.value) == "remote"
        if is_call and "name=" not in ast.unparse(node):  # that makes an actor, and has no answer
            yield node.lineno


def left_in_time(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that wait for an answer no longer than a while, and drop what is late."""
    for node in ast.walk(tree):
        is_get = isinstance(node, ast.Call) and ast.unparse(node.func) == "ray.get"
        if is_get and any(given.arg == "timeout" for given in node.keywords):
            yield node.lineno


def _method(node: ast.AST) -> str:
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    return node.func.attr if is_call else ""


@pytest.mark.parametrize("path", sorted(HERE.rglob("*.py")), ids=lambda it: it.stem)
def test_no_reference_is_dropped_that_may_fail(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert list(dropped(tree)) == []
    if path.relative_to(HERE).as_posix() not in THEIR_OWN_WAY:
        assert list(left_in_time(tree)) == []


@pytest.mark.parametrize("path", THEIR_OWN_WAY)
def test_who_has_a_way_of_its_own_needs_it(path: str) -> None:
    assert list(left_in_time(ast.parse((HERE / path).read_text())))
