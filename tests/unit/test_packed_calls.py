"""A call's header and plain arguments travel as one argument, and arrive as they were."""

from __future__ import annotations

from typing import Any

import pytest

from ray_route.protocol.calls import HEADER_LENGTH, packed, unpacked

HEADER = ["ann", 2**60, 7, "say", 2**62, 3, 1.5, "node", [2**62, 5]]


class Text(str):
    """A user's own."""

    __slots__ = ()


@pytest.mark.parametrize(
    ("args", "as_bytes"),
    [
        ((), True),
        (("hi", 2**70, -1.5, True, b"x", None, "\udcff"), True),
        (([1], {"k": (2,)}), False),  # may hold references, which Ray must see
        ((Text("hi"),), False),
    ],
)
def test_what_is_packed_is_unpacked(args: tuple[Any, ...], as_bytes: bool) -> None:
    assert len(HEADER) == HEADER_LENGTH
    sent = packed(HEADER, args)
    assert (type(sent) is bytes) == as_bytes
    header, arrived = unpacked(sent)
    assert header == HEADER
    assert tuple(arrived) == args
    assert [type(value) for value in arrived] == [type(value) for value in args]
