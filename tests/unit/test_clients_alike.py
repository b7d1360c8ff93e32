"""The client that blocks and the one that is awaited are one client: names, parameters, docs."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import ray_route
from ray_route import AsyncRouteClient, RouteClient

# What differs by nature: how each is entered and left, and what a drain yields its progress by.
_ENTERED = {"__enter__", "__exit__", "__aenter__", "__aexit__"}
_YIELDS = {"Iterator[DrainProgress]": "AsyncIterator[DrainProgress]"}


def methods(cls: type) -> dict[str, Any]:
    """What a class defines itself for its users."""
    return {
        name: member
        for name, member in vars(cls).items()
        if inspect.isfunction(member) and (not name.startswith("_") or name in _ENTERED)
    }


SYNC, ASYNC = methods(RouteClient), methods(AsyncRouteClient)
NAMES = sorted(set(SYNC) - _ENTERED)


def test_both_have_the_same_methods() -> None:
    assert set(SYNC) - _ENTERED == set(ASYNC) - _ENTERED
    assert NAMES


def test_both_have_the_same_attributes() -> None:
    def attributes(cls: type) -> set[str]:
        return {name for name in dir(cls) if not name.startswith("_")}

    assert attributes(RouteClient) == attributes(AsyncRouteClient)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_takes_and_returns_the_same(name: str) -> None:
    one, other = inspect.signature(SYNC[name]), inspect.signature(ASYNC[name])
    assert list(one.parameters.values()) == list(other.parameters.values())
    returned = str(one.return_annotation)
    assert str(other.return_annotation) == _YIELDS.get(returned, returned)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_is_awaited_and_its_doc_says_where_it_is_described(name: str) -> None:
    method = ASYNC[name]
    assert inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)
    assert not inspect.iscoroutinefunction(SYNC[name])
    assert SYNC[name].__doc__
    assert f"See `RouteClient.{name}`" in (method.__doc__ or "")


def test_both_are_made_by_functions_that_take_the_same() -> None:
    one = inspect.signature(ray_route.connect)
    other = inspect.signature(ray_route.connect_async)
    assert one.parameters == other.parameters
    assert inspect.iscoroutinefunction(ray_route.connect_async)
