"""Looks at the answers of calls that nobody has taken yet: some are refusals."""

from __future__ import annotations

import asyncio
import logging
from time import thread_time
from typing import Any, Protocol

import ray
from ray.experimental import get_object_locations

from ray_route.client.call_loop import CallLoop
from ray_route.client.outgoing import Outgoing
from ray_route.client.session import Session
from ray_route.clock import now
from ray_route.errors import RayGoneError
from ray_route.runtime.joined_ray import joined_by_client
from ray_route.runtime.waiting import LifeEndedError

logger = logging.getLogger(__name__)

# Whoever takes an answer soon sees by himself what it is. A look costs as much as taking it, so
# that what can still be taken is looked at later: of 1,000 calls in flight, none.
_LOOK_S = 0.2
_UNTAKEN_S = 1.0
_OF_THE_TIME = 0.1
_HERE_S = 0.02
# By Ray Client even what is small has a way to come.
_FETCH_S = 5.0


class Outcomes(Protocol):
    """Who is told what became of answers; see `Dispatcher`."""

    def settled(self, call: Outgoing, ref: Any) -> bool:
        """Take in that an answer is the outcome."""

    def troubled(self, call: Outgoing, ref: Any, error: Exception) -> None:
        """Take in that no answer comes."""

    def take_in(self, call: Outgoing, ref: Any, answer: Any) -> bool:
        """Take in an answer."""

    def take_in_error(self, call: Outgoing, ref: Any, error: Exception) -> bool:
        """Take in an error that came instead."""


class Untaken:
    """The calls that are out. Their answers are looked at now and then, and never fetched.

    One that lies in Ray's object store is no refusal, for those are small. (By Ray Client nobody
    can say where one lies, so they are fetched.)
    """

    def __init__(self, session: Session, loop: CallLoop, outcomes: Outcomes) -> None:
        self._session = session
        self._loop = loop
        self._outcomes = outcomes
        self._out: dict[Outgoing, None] = {}
        self._looking = False

    def __len__(self) -> int:
        return len(self._out)

    def add(self, call: Outgoing) -> None:
        """Look at a call's answer after a while, until it is discarded."""
        self._out[call] = None
        if not self._looking:
            self._loop.run_soon(self._look)

    def discard(self, call: Outgoing) -> None:
        """Look at a call no more."""
        self._out.pop(call, None)

    async def _look(self) -> None:
        """Look at answers now and then, for no more than a part of a processor's time."""
        if self._looking:
            return
        self._looking = True
        pause_s = _LOOK_S
        while self._has_work():
            await asyncio.sleep(pause_s)
            spent_s = thread_time()  # what the machine does besides makes no look dear
            try:
                self.look([call for call in list(self._out) if _is_due(call, now())])
            except RayGoneError:
                return  # no answer comes any more
            except Exception:  # whatever one look met, the next may see to the others
                logger.exception("could not look at the answers of calls")
            pause_s = max(_LOOK_S, (thread_time() - spent_s) / _OF_THE_TIME)

    def _has_work(self) -> bool:
        """True if there is something to look at; else looking is over, and begins anew."""
        if not self._out:
            self._looking = False
            self._looking = bool(self._out)  # one that has come in between saw that it was looking
            return self._looking
        return True

    def look(self, calls: list[Outgoing]) -> None:
        """See to those calls that have an answer, without fetching any value."""
        # Those of another namespace are seen to by who sent them.
        refs = [(call.ref, call) for call in calls if call in self._out]
        by_ref = {ref: call for ref, call in refs if ref is not None}
        if not by_ref:
            return
        self._session.namespace.check_here()
        there, _ = ray.wait(list(by_ref), num_returns=len(by_ref), timeout=0, fetch_local=False)
        stored, here = _stored(there), set(there)  # equal to ours; by Ray Client not the same
        for ref, call in by_ref.items():
            if ref in stored:
                self._outcomes.settled(call, ref)
            elif ref in here:
                self._look_at(call, ref)
            else:
                self._look_whether_ended(call, ref)

    def _look_at(self, call: Outgoing, ref: Any) -> None:
        try:
            self._outcomes.take_in(call, ref, ray.get(ref, timeout=_fetch_s()))
        except ray.exceptions.GetTimeoutError as error:
            if isinstance(error, ray.exceptions.RayTaskError):
                self._outcomes.take_in_error(call, ref, error)
        except Exception as error:  # noqa: BLE001 - it is the call's outcome
            self._outcomes.take_in_error(call, ref, error)

    def _look_whether_ended(self, call: Outgoing, ref: Any) -> None:
        link = call.link
        if link is not None and call.ref is ref and self._session.has_ended(call.service, link):
            self._outcomes.troubled(call, ref, LifeEndedError(call.what))


def _is_due(call: Outgoing, at: float) -> bool:
    return at - call.begun_at > (_LOOK_S if call.forsaken else _UNTAKEN_S)


def _stored(refs: list[Any]) -> set[Any]:
    """Return those answers that lie in Ray's object store."""
    if not refs or joined_by_client():
        return set()
    locations = get_object_locations(refs)
    return {ref for ref in refs if locations[ref]["node_ids"]}


def _fetch_s() -> float:
    return _FETCH_S if joined_by_client() else _HERE_S
