"""The order of the calls of one uid."""

from __future__ import annotations

import itertools
import random
import threading
from bisect import insort
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import ray

from ray_route.client.outgoing import Outgoing
from ray_route.model import Link
from ray_route.protocol.calls import Order

# Unlike those of any other process, of which there are few.
_runs = itertools.count(random.SystemRandom().getrandbits(62))
_by_number = attrgetter("number")


@dataclass(eq=False, slots=True)
class Lane:
    """The calls of one uid: those that are out, and those that wait, in the order made.

    A call is sent when no earlier one waits, and none is out that was sent under another epoch:
    that may come back refused, and is sent again first. Whoever reads or changes it holds it (see
    `Lanes.of` and `held`), in a `with` that lets go of it, and forgets it if nothing is on its way.
    """

    key: tuple[str, str]
    all: Lanes
    lock: threading.RLock = field(default_factory=threading.RLock)
    waiting: list[Outgoing] = field(default_factory=list)
    out: set[Outgoing] = field(default_factory=set)
    """Those that may come back, to be sent again."""
    epoch: int = 0
    refused: bool = False
    """One came back: what is out is waited for before anything is sent."""
    awaited: list[Any] = field(default_factory=list)
    """Arguments of the call that was sent last; while they are not there, Ray holds it back."""
    last: Outgoing | None = None
    run: int = 0
    place: int = 0
    """Of the next call in this run."""
    begun: Order = (0, 0)
    """So many calls of a run are known to have begun."""
    is_driven: bool = False
    closed: bool = False

    def held(self) -> Lane:
        """Return it when nobody else holds it."""
        self.lock.acquire()
        return self

    def __enter__(self) -> Lane:
        return self

    def __exit__(self, *_: object) -> None:
        if not (self.out or self.waiting or self.is_driven or self.closed):
            self.closed = True
            self.all.forget(self.key)
        self.lock.release()

    def may_send(self, epoch: int) -> bool:
        """True if what was sent before can't come back behind a call of this epoch."""
        return not self.out or (epoch == self.epoch and not self.refused)

    def is_held_up(self) -> bool:
        """True while a call that is sent now would overtake the one before, which awaits values."""
        if self.awaited:
            refs = list(set(self.awaited))
            _, missing = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
            self.awaited = missing
        return bool(self.awaited)

    def hold(self, call: Outgoing) -> None:
        """Have a call wait, in the order in which it was made."""
        insort(self.waiting, call, key=_by_number)

    def order(self) -> Order:
        """Return the place of the call that is sent next; nothing out means that a run begins."""
        if not self.out or self.refused:
            self.run, self.place = next(_runs), 0
        self.place += 1
        return self.run, self.place - 1

    def sent(self, call: Outgoing, ref: Any, link: Link) -> None:
        """Take in that a call is out."""
        call.ref, call.link = ref, link
        self.last, self.awaited = call, call.references()
        self.epoch, self.refused = link.epoch, False
        self.out.add(call)
        call.changed()

    def have_begun(self, run: int, places: int) -> None:
        """Take in that the first calls of a run have begun: nothing has to wait for those."""
        if (run, places) != self.begun:
            self.begun = run, places
            self.out = {one for one in self.out if one.order[0] != run or one.order[1] >= places}

    def came_back(self, call: Outgoing, ref: Any) -> bool:
        """Have a call wait again whose answer is none; False if that was seen to before."""
        if call.ref is not ref or call.over:
            return False
        call.ref = None
        self.out.discard(call)
        self.refused = True
        self.hold(call)
        return True

    def over(self, call: Outgoing, error: Exception | None = None) -> None:
        """Take in the end of a call: its answer is certain, or it has an error."""
        if call.over:
            return
        call.certain, call.error = error is None, error
        call.args, call.kwargs, call.sent_refs = (), {}, ()  # nothing sends it again
        self.out.discard(call)
        if call is self.last:
            self.awaited = []
        if call in self.waiting:
            self.waiting.remove(call)
        call.changed()


class Lanes:
    """The lanes of all uids that have calls on their way. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lanes: dict[tuple[str, str], Lane] = {}

    def of(self, call: Outgoing) -> Lane:
        """Return the lane of a call, held."""
        key = (call.service, call.uid)
        while True:
            with self._lock:
                lane = self._lanes.get(key)
                if lane is None:
                    lane = self._lanes[key] = Lane(key, self)
            if not lane.held().closed:
                return lane
            lane.lock.release()

    def forget(self, key: tuple[str, str]) -> None:
        """Forget a lane in which nothing is on its way."""
        with self._lock:
            self._lanes.pop(key, None)

    def all(self) -> list[Lane]:
        """Return all there are now."""
        with self._lock:
            return list(self._lanes.values())

    def __len__(self) -> int:
        return len(self._lanes)
