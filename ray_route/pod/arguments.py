"""The arguments of a pod's class, in a form that outlives the process that deployed it.

What Ray is given as an argument of more than 100 KB lies in the object store and belongs to its
maker: when that has left, no restart of the actor finds it any more. Smaller ones travel in the
actor's own description, which Ray's head keeps. So arguments are pickled here, and cut.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any, cast

import ray
from ray import cloudpickle

from ray_route.clock import Deadline
from ray_route.errors import ConfigError, RouteTimeoutError

PIECE_BYTES = 90_000
"""Ray keeps an argument of less than 100 KB in the description of its actor."""
MOST_BYTES = 5_000_000
"""Of one pod. Ray takes 10 MB for all arguments of an actor, and its head keeps them in memory."""

GIVEN = "args, kwargs, store"
"""What users give that is pickled here."""

_PLACE_OF_MORE = "keep what is larger where every pod can read it, and give its address"


class _Pickler(cloudpickle.CloudPickler):
    """Refuses references to objects, which are lost with the process that made them.

    Handles of actors are noted in `held`: Ray ends an actor of which it knows no handle any more,
    and sees none within bytes.
    """

    held: list[Any]

    def persistent_id(self, value: Any) -> None:
        if isinstance(value, ray.actor.ActorHandle):
            self.held.append(value)
        if isinstance(value, ray.ObjectRef):
            raise ConfigError(
                option=GIVEN,
                reason="hold an ObjectRef within another value, and its object ends with this "
                f"process, before the pods; give the value itself, or {_PLACE_OF_MORE}",
            )


def pack(
    args: Iterable[Any], kwargs: Mapping[str, Any], store: Any, deadline: Deadline
) -> tuple[bytes, list[Any]]:
    """Pickle the arguments of a class, and the user's store of its states, if any.

    Arguments that are ObjectRefs are fetched, as Ray does.

    Returns the handles of actors in them, too: they are to travel along by way of Ray.

    Raises `ConfigError` for what can't outlive this process, or is too large; `RouteTimeoutError`;
    what pickling raises.
    """
    values = [_value(arg, f"args[{place}]", deadline) for place, arg in enumerate(args)]
    named = {name: _value(arg, f"kwargs[{name!r}]", deadline) for name, arg in kwargs.items()}
    out = io.BytesIO()
    pickler = cast(Any, _Pickler)(out)  # Ray's own copy has no types
    pickler.held = []
    pickler.dump((tuple(values), named, store))
    return check_size(out.getvalue(), GIVEN), pickler.held


def _value(arg: Any, where: str, deadline: Deadline) -> Any:
    if not isinstance(arg, ray.ObjectRef):
        return arg
    try:
        return ray.get(arg, timeout=deadline.remaining())
    except ray.exceptions.GetTimeoutError as error:
        if isinstance(error, ray.exceptions.RayTaskError):
            raise  # what made it has raised that
        what = f"the object of the ObjectRef {where}"
        raise RouteTimeoutError(waiting_for=what, timeout_s=deadline.timeout_s) from error


def check_size(packed: bytes, option: str) -> bytes:
    """Return what is small enough to outlive its maker; raise `ConfigError` otherwise."""
    if len(packed) > MOST_BYTES:
        raise ConfigError(
            option=option,
            reason=f"take {len(packed):,} bytes when pickled, and may take {MOST_BYTES:,}: Ray's "
            f"head keeps them for as long as the pods live; {_PLACE_OF_MORE}",
        )
    return packed


def cut(packed: bytes) -> list[bytes]:
    """Cut what is pickled into pieces that Ray keeps."""
    starts = range(0, len(packed), PIECE_BYTES)
    return [packed[start : start + PIECE_BYTES] for start in starts]


def unpack(pieces: Iterable[bytes]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Return the arguments and the store from the pieces of what `pack` made."""
    args, kwargs, store = cloudpickle.loads(b"".join(pieces))
    return args, kwargs, store
