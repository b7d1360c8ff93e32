"""What the uids of a pod weigh: what its code says of each, and how long their calls take."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import nlargest
from itertools import islice

from ray_route.errors import InvalidInputError
from ray_route.model import HotUid
from ray_route.pod.entries import Entry, Phase
from ray_route.pod.holdings import Holdings
from ray_route.protocol.commands import Weighed

# Of a pod's uids so many, those used last, are looked at for the hottest.
_LOOKED_AT = 10_000


class UidLoads:
    """What is known of the load of each uid that a process holds. Thread-safe."""

    def __init__(self, held: Holdings) -> None:
        self._held = held

    def report(self, uid: str, load: float | None) -> None:
        """Take in what the pod's code says of a uid; None: nothing any more."""
        with self._held.lock:
            entry = self._held.entries.get(uid)
            here = (Phase.HELD, Phase.ACQUIRING)
            if entry is None or entry.lost or entry.phase not in here:
                reason = "is not held by this pod"
                raise InvalidInputError(argument="uid", value=uid, reason=reason)
            entry.load = load

    def weighed(self) -> Weighed:
        """Return what is here. Who is just being acquired counts as one that has a call."""
        with self._held.lock:
            at = self._held.clock()
            weighed = Weighed({}, {}, {}, [], [])
            for uid, entry in self._held.entries.items():
                if entry.phase in (Phase.HELD, Phase.ACQUIRING, Phase.ARRIVED) and not entry.lost:
                    _weigh(weighed, uid, entry, at)
            return weighed

    def hottest(self, most: int) -> list[HotUid]:
        """Return the uids with the highest load, or the most call time, the hottest first."""
        with self._held.lock:
            return nlargest(most, self._hot(), key=lambda one: (one.load or 0.0, one.call_share))

    def most_of_the_time(self) -> float:
        """Return which share of its time the busiest uid has spent in calls lately."""
        with self._held.lock:
            return max((one.call_share for one in self._hot()), default=0.0)

    def _hot(self) -> Iterator[HotUid]:
        at = self._held.clock()
        for uid in islice(self._held.order.latest(), _LOOKED_AT):
            entry = self._held.entries.get(uid)
            if entry is not None and (entry.calls or entry.call_time.seconds or entry.load):
                share = entry.call_time.share(at, running=bool(entry.calls))
                yield HotUid(uid, self._held.pod, share, entry.load)


def _weigh(weighed: Weighed, uid: str, entry: Entry, at: float) -> None:
    weighed.epochs[uid] = entry.epoch
    if entry.load is not None:
        weighed.loads[uid] = entry.load
    if share := entry.call_time.share(at, running=bool(entry.calls)):
        weighed.shares[uid] = share
    if entry.calls or entry.phase is not Phase.HELD:
        weighed.busy.append(uid)
    if entry.persistent:
        weighed.persistent.append(uid)
