"""Which controller is in force, and how far it has come, as Ray itself knows it.

Redis may lose what it was told. Ray's head keeps these marks for as long as it keeps the actors
that they speak of.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import ray

from ray_route.clock import now
from ray_route.protocol.names import RAY_NAMESPACE
from ray_route.runtime import head_notes

BEGUN = b"begun"
_ENDS = b"ends within "

_OLD_S = 3600.0


def note(actor: str, mark: bytes) -> None:
    """Note how far the controller of that Ray actor id has come."""
    head_notes.put(actor, mark)


def note_begun(actor: str) -> None:
    """Note that a controller keeps its service, unless the end of that has been noted meanwhile."""
    head_notes.put_first(actor, BEGUN)


def noted(actor: str) -> bytes | None:
    """Return what was noted of a controller last; None: nothing."""
    return head_notes.get(actor)


def note_end(actor: str, grace_s: float) -> None:
    """Note that the controller's service ends, and how long its pods have for that.

    A controller that begins from now on goes on with it, and no more pods are made.
    """
    note(actor, _ENDS + str(grace_s).encode())


def grace_of(mark: bytes | None) -> float | None:
    """Return how long the pods of a service that ends have, by what was noted; None: it goes on."""
    if mark is None or not mark.startswith(_ENDS):
        return None
    return float(mark.removeprefix(_ENDS))


def forget(actor: str) -> None:
    """Forget a controller, its plan, and what was given up of what it was asked for."""
    for name in (actor, plan_of(actor), _before(actor)):
        head_notes.delete(name)
    head_notes.delete_all(_given_up(actor, ""))


def give_up(actor: str, request: str) -> None:
    """Note that a caller has given up what it has asked a controller for, in whichever life."""
    head_notes.put(_given_up(actor, request), b"1")


def is_given_up(actor: str, request: str) -> bool:
    """True if that was noted. Asks Ray's head."""
    return head_notes.get(_given_up(actor, request)) is not None


class GivenUp:
    """Forgets what callers of one controller have given up, once nobody can ask for that again.

    A caller that asks again, since an answer was lost, does so at once.
    """

    def __init__(self, actor: str) -> None:
        self._actor = actor
        self._seen_at: dict[str, float] = {}

    def forget_old(self, under_way: str) -> None:
        """Forget all but that of what is under way, an hour after they were seen first."""
        found = head_notes.names(_given_up(self._actor, ""))
        self._seen_at = {name: self._seen_at.get(name, now()) for name in found}
        for name, seen_at in self._seen_at.items():
            if now() >= seen_at + _OLD_S and name != _given_up(self._actor, under_way):
                head_notes.delete(name)


def _given_up(actor: str, request: str) -> str:
    return f"{actor}:given_up:{request}"


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
