"""The order of the calls that one caller makes for one uid.

What is called within one turn is one caller: a call of it must not wait for those of another, which
may wait for the end of that very turn.
"""

from __future__ import annotations

import itertools
import random
import threading
from bisect import insort
from collections.abc import Callable
from operator import attrgetter
from weakref import WeakValueDictionary

from ray_route.client.outgoing import Outgoing
from ray_route.protocol.calls import Chain, Order

# Unlike those of any other process, of which there are few.
_runs = itertools.count(random.SystemRandom().getrandbits(62))
_by_number = attrgetter("number")

Key = tuple[str, str, Chain]
"""Service, uid, and the turns within which the calls are made."""
Look = Callable[[list[Outgoing]], None]
"""Sees to calls that are out and have an answer."""


class Lane:
    """The calls of one caller for one uid: those that are out or wait, in the order made.

    A call is sent when no earlier one waits, and none is out that was sent under another epoch:
    that may come back refused, and is sent again first. Whoever reads or changes it has its lock.
    It lives while a call of its uid does.

    An interrupt may come at any line of the thread that has the lock. So what is done here is done
    in an order that leaves, at each line, something that whoever comes next brings to its end.
    """

    __slots__ = (
        "__weakref__",
        "begun",
        "broken",
        "epoch",
        "is_driven",
        "lock",
        "look",
        "most",
        "out",
        "place",
        "run",
        "waiting",
    )

    def __init__(self, look: Look) -> None:
        self.lock = threading.RLock()
        self.look = look
        self.waiting: list[Outgoing] = []
        self.out: set[Outgoing] = set()
        """Those that may come back, to be sent again."""
        self.epoch = 0
        self.broken = False
        """Its run is over: what is out is waited for before another begins."""
        self.run = 0
        self.place = 0
        """Of the next call in this run."""
        self.begun: Order = (0, 0)
        """So many calls of a run are known to have begun."""
        self.most: float | None = None
        """So many of its calls at a time its pod has taken, and said then that it is busy.

        One more each time that so many have ended since: what made it busy may be over.
        """
        self.is_driven = False
        """Something sees to those that wait, until there are none."""

    @property
    def first(self) -> Outgoing | None:
        """The first of those that wait; None if none does."""
        return self.waiting[0] if self.waiting else None

    def may_send(self, epoch: int) -> bool:
        """True if what was sent before can't come back behind a call of this epoch.

        Nor more are sent than the pod takes: all but the first ones would come back.
        """
        if self.most is not None and len(self.out) >= int(self.most):
            return False
        return not self.out or (epoch == self.epoch and not self.broken)

    def hold(self, call: Outgoing) -> None:
        """Have a call wait, in the order in which it was made."""
        if call not in self.waiting:
            insort(self.waiting, call, key=_by_number)

    def order(self) -> Order:
        """Return the place of the call that is sent next; nothing out means that a run begins.

        The run is broken until that is `sent`, or for certain `not_sent`: interrupted in between,
        nobody knows whether the pod has it.
        """
        if not self.out or self.broken:
            self.run, self.place = next(_runs), 0
        self.broken = True
        return self.run, self.place

    def not_sent(self) -> None:
        """Take in that the call which was to be next has reached nobody."""
        self.broken = False

    def sent(self, call: Outgoing, epoch: int) -> None:
        """Take in that a call is out."""
        self.epoch = epoch
        self.out.add(call)
        self.place += 1
        call.changed()
        self.broken = False

    def have_begun(self, run: int, places: int) -> None:
        """Take in that the first calls of a run have begun: nothing has to wait for those."""
        if (run, places) != self.begun:
            self.out = {one for one in self.out if one.order[0] != run or one.order[1] >= places}
            self.begun = run, places

    def is_busy(self, call: Outgoing, begun: int) -> None:
        """Take in that the pod has taken no more than those before a call, of which some begun."""
        self.most = max(1, call.order[1] - begun)

    def came_back(self, call: Outgoing) -> None:
        """Have a call wait again whose answer is none."""
        self.hold(call)
        self.broken = True
        self.out.discard(call)
        call.ref = None  # last: until then its answer counts, and is seen to once more

    def over(self, call: Outgoing, error: Exception | None = None) -> None:
        """Take in the end of a call: its answer is certain, or it has an error; once or again."""
        if not call.over:
            call.certain, call.error = error is None, error
            if self.most is not None and error is None:
                self.most += 1 / self.most
        call.args, call.kwargs, call.sent_refs = (), {}, ()  # nothing sends it again
        self.out.discard(call)
        if call in self.waiting:
            self.waiting.remove(call)
        call.changed()


class Lanes:
    """The lanes of all uids that have calls on their way. Thread-safe."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._lock = threading.RLock()  # a collection of garbage in it may lead here
        self._lanes: WeakValueDictionary[Key, Lane] = WeakValueDictionary()

    def of(self, call: Outgoing) -> Lane:
        """Return the lane of a call."""
        key = (call.service, call.uid, call.chain)
        lane = self._lanes.get(key)
        if lane is None:
            with self._lock:
                lane = self._lanes.setdefault(key, Lane(self._look))
        return lane

    def all(self) -> list[Lane]:
        """Return all there are now."""
        return list(self._lanes.values())

    def __len__(self) -> int:
        """Return in how many something is on its way; others wait to be collected."""
        return sum(bool(lane.waiting or lane.out) for lane in self.all())
