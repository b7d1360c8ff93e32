"""Arguments of a pod's class are cut into what Ray keeps; others are refused at once."""

from __future__ import annotations

import pytest
import ray

from ray_route.clock import Deadline
from ray_route.errors import ConfigError
from ray_route.pod.arguments import MOST_BYTES, PIECE_BYTES, cut, pack, unpack

SOON = Deadline.after(60)


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, 3 * PIECE_BYTES + 7])
def test_arguments_come_back_whole_from_pieces_that_ray_keeps(size: int) -> None:
    pieces = cut(pack((b"x" * size, lambda: 7), {"name": "ann"}, None, SOON)[0])
    assert max(map(len, pieces)) <= PIECE_BYTES < 100_000
    (held, function), kwargs, _ = unpack(pieces)
    assert (held, function(), kwargs) == (b"x" * size, 7, {"name": "ann"})


def test_too_large_ones_are_refused_with_their_size_and_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"take 5,000,0\d\d bytes .* give its address"):
        pack((b"x" * MOST_BYTES,), {}, None, SOON)


def test_a_reference_within_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="ObjectRef within another value"):
        pack(([ray.ObjectRef.from_random()],), {}, None, SOON)
