"""Arguments that are not there yet: of all calls that wait for some, by one look now and then.

Ray itself would hold a call back until they are there. But to an actor with one thread it then
holds back all that this process sends later, for whatever uid; and if the call is cancelled in the
meantime, the actor waits for it for 30 s and then fails those behind it. So Ray is given no call
that can't begin yet.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import ray

from ray_route.client.lanes import Look
from ray_route.client.outgoing import Outgoing
from ray_route.clock import now

_LOOK_S = 0.002
_OF_THE_TIME = 0.1


def have_arrived(call: Outgoing) -> bool:
    """Return True if all arguments of a call are there, or will never be.

    Takes the locks of lanes: ask while you have none.
    """
    if call.is_plain:
        return True
    _look_at([call])
    return _has_arrived(call, _there({*call.references()}))


def _look_at(calls: list[Outgoing]) -> None:
    """See to the answers of other calls that are arguments."""
    found: defaultdict[Look, list[Outgoing]] = defaultdict(list)
    for one in {one for call in calls for one in call.upstream()}:
        if not one.over and one.lane is not None:
            found[one.lane.look].append(one)
    for look, some in found.items():
        look(some)


def _there(refs: set[Any]) -> set[Any]:
    if not refs:
        return refs
    there, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0, fetch_local=False)
    return set(there)


def _has_arrived(call: Outgoing, there: set[Any]) -> bool:
    return all(one.over for one in call.upstream()) and call.references() <= there


class Arrivals:
    """Wakes those who wait for arguments. For tasks of one event loop."""

    def __init__(self) -> None:
        self._awaited: dict[Outgoing, asyncio.Event] = {}

    async def of(self, call: Outgoing) -> None:
        """Wait until a call has its arguments, or is not to wait for them any more."""
        woken = self._awaited[call] = asyncio.Event()
        if len(self._awaited) == 1:
            self._looking = asyncio.create_task(self._look())
        await woken.wait()

    async def _look(self) -> None:
        pause_s = _LOOK_S
        try:
            while self._awaited:
                await asyncio.sleep(pause_s)
                begun_at = now()
                self._look_once()
                pause_s = max(_LOOK_S, (now() - begun_at) / _OF_THE_TIME)
        finally:  # whatever it met, they meet it themselves
            self._wake(list(self._awaited))

    def _look_once(self) -> None:
        waiting = list(self._awaited)
        _look_at(waiting)
        there = _there({ref for call in waiting for ref in call.references()})
        self._wake([call for call in waiting if _goes_on(call) or _has_arrived(call, there)])

    def _wake(self, calls: list[Outgoing]) -> None:
        for call in calls:
            self._awaited.pop(call).set()


def _goes_on(call: Outgoing) -> bool:
    """Return True if a call is not to wait for its arguments, or not now."""
    first = next(iter(call.lane.waiting), None)
    return first is not call or call.over or call.cancelled or not call.deadline.remaining()
