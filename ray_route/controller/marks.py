"""Which controller is in force, and how far it has come, as Ray itself knows it.

Redis may lose what it was told. Ray's head keeps these marks for as long as it keeps the actors
that they speak of.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import ray
from ray.experimental import internal_kv

from ray_route.clock import now
from ray_route.protocol.names import RAY_NAMESPACE

BEGUN = b"begun"
ENDED = b"ended"

_KV_NAMESPACE = b"ray_route"
_OLD_S = 3600.0


def note(actor: str, mark: bytes) -> None:
    """Note how far the controller of that Ray actor id has come."""
    internal_kv._internal_kv_put(actor.encode(), mark, overwrite=True, namespace=_KV_NAMESPACE)  # noqa: SLF001 - Serve's way, too


def noted(actor: str) -> bytes | None:
    """Return what was noted of a controller last; None: nothing."""
    found: bytes | None = internal_kv._internal_kv_get(actor.encode(), namespace=_KV_NAMESPACE)  # noqa: SLF001 - as above
    return found


def forget(actor: str) -> None:
    """Forget a controller, its plan, and what was given up of what it was asked for."""
    for name in (actor, plan_of(actor), _before(actor)):
        internal_kv._internal_kv_del(name.encode(), namespace=_KV_NAMESPACE)  # noqa: SLF001 - as above
    given_up = _given_up(actor, "")
    internal_kv._internal_kv_del(given_up, del_by_prefix=True, namespace=_KV_NAMESPACE)  # noqa: SLF001 - as above


def give_up(actor: str, request: str) -> None:
    """Note that a caller has given up what it has asked a controller for, in whichever life."""
    name = _given_up(actor, request)
    internal_kv._internal_kv_put(name, b"1", overwrite=True, namespace=_KV_NAMESPACE)  # noqa: SLF001 - as above


def is_given_up(actor: str, request: str) -> bool:
    """True if that was noted. Asks Ray's head."""
    found: bool = internal_kv._internal_kv_exists(  # noqa: SLF001 - as above
        _given_up(actor, request), namespace=_KV_NAMESPACE
    )
    return found


class GivenUp:
    """Forgets what callers of one controller have given up, once nobody can ask for that again.

    A caller that asks again, since an answer was lost, does so at once.
    """

    def __init__(self, actor: str) -> None:
        self._actor = actor
        self._seen_at: dict[bytes, float] = {}

    def forget_old(self, under_way: str) -> None:
        """Forget all but that of what is under way, an hour after they were seen first."""
        prefix = _given_up(self._actor, "")
        found: list[bytes] = internal_kv._internal_kv_list(prefix, namespace=_KV_NAMESPACE)  # noqa: SLF001 - as above
        self._seen_at = {name: self._seen_at.get(name, now()) for name in found}
        for name, seen_at in self._seen_at.items():
            if now() >= seen_at + _OLD_S and name != _given_up(self._actor, under_way):
                internal_kv._internal_kv_del(name, namespace=_KV_NAMESPACE)  # noqa: SLF001 - as above


def _given_up(actor: str, request: str) -> bytes:
    return f"{actor}:given_up:{request}".encode()


def plan_of(actor: str) -> str:
    """Return under which name the plan of a controller is noted: which generation it wants."""
    return f"{actor}:plan"


def first_found(actor: str, request: str, indexes: Iterable[int]) -> list[int]:
    """Return which pods were wanted when a request was begun first, in whichever life.

    That is noted now for a request that is not the last one: these are they.
    """
    mark = noted(_before(actor))
    last, found = json.loads(mark) if mark else ("", [])
    if last != request:
        found = list(indexes)
        note(_before(actor), json.dumps([request, found]).encode())
    return list(map(int, found))


def _before(actor: str) -> str:
    return f"{actor}:before"


def leads_to(name: str, actor: str) -> bool:
    """True if an actor's name leads to the actor of that Ray id. Asks Ray's head."""
    try:
        reached: str = ray.get_actor(name, namespace=RAY_NAMESPACE)._actor_id.hex()  # noqa: SLF001 - it has no public one
    except ValueError:
        return False
    return reached == actor


def is_in_charge(name: str, actor: str) -> bool:
    """True while the controller of that Ray id keeps its service. Asks Ray's head.

    Once its service's end has begun it does not; its name may lead to it for a moment more.
    """
    return noted(actor) == BEGUN and leads_to(name, actor)
