"""Fetches the states of uids that are to come to this pod, from the pods that have given them up.

Nothing is taken from anybody by that: the uid is this pod's only once its link says so, and what
has arrived for a link that never comes is dropped (see `Releases.settled`).
"""

from __future__ import annotations

import logging
import pickle
import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TypeGuard

from ray_route.clock import Deadline, now
from ray_route.error_root import in_words
from ray_route.pod.exports import DROPPED, GONE, LARGE, LATER, Unsent
from ray_route.pod.holdings import Holdings
from ray_route.pod.hooks import Hooks
from ray_route.pod.incoming import has_come, take_in
from ray_route.pod.peers import ActorPeer, Peer
from ray_route.pod.states import Bytes, State, arrival
from ray_route.pod.work_line import SOON_S, run_in_line
from ray_route.protocol.commands import Take, Taken

logger = logging.getLogger(__name__)

# So many large states are fetched at a time: each takes its size in memory, more than once.
_LARGE_AT_ONCE = 4
# An owner that answers at all answers sooner: it puts off what takes long.
_ANSWER_S = 10.0
# One that is read more slowly than so many bytes a second is not waited for.
_READ_RATE = 20 << 20

_NOT_IN = "that pod leaves, or has not ended what it had of the uid before"
_NO_STATES = Unsent("its class takes no state: on_acquire(uid, state)", is_final=True)

Tell = Callable[[list[Taken]], None]
FindPeer = Callable[[str], Peer]


class Arrivals:
    """Carries out `Take`s, each in a thread of its own: one that hangs holds up no other."""

    def __init__(self, held: Holdings, hooks: Hooks, find_peer: FindPeer = ActorPeer) -> None:
        self._held = held
        self._hooks = hooks
        self._find_peer = find_peer
        self._large = threading.Semaphore(_LARGE_AT_ONCE)

    def begin(self, number: int, take: Take, tell: Tell) -> None:
        """Begin to fetch; `tell` hears what became of each uid, as that is known."""
        rooms = (self._held, self._hooks, self._find_peer, self._large)
        fetch = _Fetch(*rooms, number, take, tell)
        try:
            threading.Thread(target=fetch.run, name="ray_route-take", daemon=True).start()
        except RuntimeError as error:  # the system has no more threads for us, now
            fetch.fail(error)


class _Fetch:
    """One `Take`. What is slow is asked for again and again; what is there is told of at once."""

    def __init__(
        self,
        held: Holdings,
        hooks: Hooks,
        find_peer: FindPeer,
        large: threading.Semaphore,
        number: int,
        take: Take,
        tell: Tell,
    ) -> None:
        self._held = held
        self._hooks = hooks
        self._find_peer = find_peer
        self._large = large
        self._number = number
        self._take = take
        self._tell = tell
        self._left = dict(take.uids)
        self._deadline = Deadline.after(take.within_s)
        self._was_read: queue.SimpleQueue[Taken] = queue.SimpleQueue()

    def run(self) -> None:
        """Fetch all, or tell why not."""
        try:
            self._tell_known()
            if self._left:
                self._fetch_all(self._find_peer(self._take.actor))
        except Exception as error:  # noqa: BLE001 - whatever it is, the router must hear of it
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Tell why what is left is not fetched."""
        problem = Unsent(f"it could not be fetched: {in_words(error)}")
        self._end(dict.fromkeys(self._left, problem))

    def _tell_known(self) -> None:
        if not self._hooks.carries:
            self._end(dict.fromkeys(self._left, _NO_STATES))
            return
        with self._held.lock:
            known = [uid for uid, epoch in self._left.items() if has_come(self._held, uid, epoch)]
        for uid in known:
            del self._left[uid]
        self._told([Taken(self._number, uid) for uid in known])

    def _fetch_all(self, owner: Peer) -> None:
        while self._left:
            within_s = min(_ANSWER_S, self._deadline.remaining())
            sent = pickle.loads(owner.some(self._left, within_s))  # noqa: S301 - a pod of ours
            self._end({uid: it for uid, it in sent.items() if _is_why_not(it)})
            self._read({uid: it for uid, it in sent.items() if isinstance(it, bytes)}, SOON_S)
            for uid in [uid for uid, found in sent.items() if found == LARGE]:
                self._fetch_one(owner, uid)

    def _fetch_one(self, owner: Peer, uid: str) -> None:
        if not self._large.acquire(timeout=self._deadline.remaining()):
            raise TimeoutError("others were fetched all the time")
        try:
            found = memoryview(owner.one(uid, self._left[uid], self._deadline.remaining()))
            if found:
                self._read({uid: found}, SOON_S + len(found) / _READ_RATE)
            else:
                self._end({uid: GONE})
        finally:
            self._large.release()

    # Reading.

    def _read(self, packed: Mapping[str, Bytes], soon_s: float) -> None:
        """Take some in; who is slow, for the user's code may be, is told of when that ends."""
        waiting = {uid: self._left.pop(uid) for uid in packed}
        read_one = partial(self._read_one, waiting, soon_s)
        try:
            run_in_line([partial(read_one, *one) for one in packed.items()], soon_s)
        except RuntimeError:  # there are no more threads: some of them nobody reads
            self._left.update(waiting)
            raise
        finally:
            self._tell_read()

    def _read_one(self, waiting: dict[str, int], soon_s: float, uid: str, packed: Bytes) -> None:
        begun = now()
        del waiting[uid]
        self._was_read.put(self._taken_in(uid, packed))
        if now() >= begun + soon_s:  # nobody may have waited for it
            self._tell_read()

    def _taken_in(self, uid: str, packed: Bytes) -> Taken:
        try:
            state: State = arrival(uid, packed, self._hooks.prepare)
        except BaseException as error:  # the user's own code, whatever it raises
            logger.exception("the state of %r can't be read", uid)
            problem = f"its state can't be read there: {in_words(error)}"
            return Taken(self._number, uid, problem, is_final=True)
        with self._held.lock:
            is_in = take_in(self._held, uid, self._take.uids[uid], state)
        return Taken(self._number, uid, "" if is_in else _NOT_IN)

    # Telling.

    def _tell_read(self) -> None:
        some = []
        with suppress(queue.Empty):
            while True:
                some.append(self._was_read.get_nowait())
        self._told(some)

    def _end(self, found: Mapping[str, Unsent]) -> None:
        """Tell that some do not come, or come without a state."""
        for uid in found:
            self._left.pop(uid, None)
        self._told(
            [
                Taken(self._number, uid, "" if why == DROPPED else why.reason, why.is_final)
                for uid, why in found.items()
            ]
        )

    def _told(self, some: list[Taken]) -> None:
        if some:
            self._tell(some)


def _is_why_not(found: bytes | Unsent) -> TypeGuard[Unsent]:
    return isinstance(found, Unsent) and found not in (LARGE, LATER)
