"""Fetches the states of uids that are to come to this pod, from the pods that have given them up.

Nothing is taken from anybody by that: the uid is this pod's only once its link says so, and what
has arrived for a link that never comes is dropped (see `Releases.settled`).
"""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray

from ray_route.clock import Deadline
from ray_route.pod.exports import DROPPED, LARGE, LATER, Unsent
from ray_route.pod.holdings import Holdings
from ray_route.pod.hooks import Hooks
from ray_route.pod.states import State, arrival
from ray_route.protocol.commands import Take, Taken
from ray_route.protocol.names import RAY_NAMESPACE

logger = logging.getLogger(__name__)

_NOT_IN = "that pod leaves, or has not ended what it had of the uid before"

Tell = Callable[[list[Taken]], None]


class Arrivals:
    """Carries out `Take`s, each in a thread of its own: one that hangs holds up no other."""

    def __init__(self, held: Holdings, hooks: Hooks) -> None:
        self._held = held
        self._hooks = hooks

    def begin(self, number: int, take: Take, tell: Tell) -> None:
        """Begin to fetch; `tell` hears what became of each uid, as that is known."""
        thread = threading.Thread(
            target=self._run, args=(number, take, tell), name="ray_route-take", daemon=True
        )
        thread.start()

    def _run(self, number: int, take: Take, tell: Tell) -> None:
        left = dict(take.uids)
        try:
            for found in self._fetched(take, left):
                told = [self._take_in(number, uid, take.uids[uid], it) for uid, it in found.items()]
                tell(told)
        except Exception as error:  # noqa: BLE001 - whatever it is, the router must hear of it
            reason = f"it could not be fetched: {error!r}"
            tell([Taken(number, uid, reason) for uid in left])

    def _fetched(self, take: Take, left: dict[str, int]) -> Iterator[dict[str, bytes | Unsent]]:
        """Yield what comes, some at a time, until nothing is left."""
        deadline = Deadline.after(take.within_s)
        for uid in list(left):
            if not self._hooks.carries:
                yield {uid: Unsent("its class takes no state: on_acquire(uid, state)", True)}
                del left[uid]
        owner: Any = ray.get_actor(take.actor, namespace=RAY_NAMESPACE) if left else None
        large: list[str] = []
        while small := {uid: epoch for uid, epoch in left.items() if uid not in large}:
            sent = pickle.loads(_answer(owner._ray_route_export.remote(small), deadline))  # noqa: S301, SLF001 - a pod of ours
            large += [uid for uid, found in sent.items() if found == LARGE]
            yield {uid: found for uid, found in sent.items() if found not in (LARGE, LATER)}
            for uid, found in sent.items():
                if found not in (LARGE, LATER):
                    del left[uid]
        for uid in large:
            asked = owner._ray_route_export_one.remote(uid, left[uid])  # noqa: SLF001 - as above
            yield {uid: _answer(asked, deadline) or Unsent("its pod keeps it no more")}
            del left[uid]

    def _take_in(self, number: int, uid: str, epoch: int, found: bytes | Unsent) -> Taken:
        if isinstance(found, Unsent):
            problem = "" if found == DROPPED else found.reason
            return Taken(number, uid, problem, found.is_final)
        try:
            state: State = arrival(uid, found, self._hooks.prepare)
        except Exception as error:  # the user's own code
            logger.exception("the state of %r can't be read", uid)
            return Taken(number, uid, f"its state can't be read there: {error!r}", is_final=True)
        with self._held.lock:
            is_in = self._held.take_in(uid, epoch, state)
        return Taken(number, uid, "" if is_in else _NOT_IN)


def _answer(asked: Any, deadline: Deadline) -> Any:
    return ray.get(asked, timeout=deadline.remaining())
