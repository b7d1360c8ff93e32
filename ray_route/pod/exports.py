"""What a pod gives of the states that it keeps, to pods that fetch them.

Runs beside calls and hooks, and waits for nobody: two pods may fetch from each other.
"""

from __future__ import annotations

import asyncio
import io
import pickle
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray import cloudpickle

from ray_route.clock import Deadline
from ray_route.error_root import in_words
from ray_route.pod.holdings import Holdings
from ray_route.pod.states import State
from ray_route.pod.work_line import SOON_S, run_in_line

EXPORT_GROUP = "ray_route_export"

# States travel together up to so many bytes; a larger one by itself, as bytes that Ray copies once.
_TOGETHER_BYTES = 4 << 20
# An answer waits so long for more, as long as one after the other comes soon.
_ANSWER_S = 1.0


@dataclass(frozen=True, slots=True)
class Unsent:
    """Why a state is not among those sent; `is_final`: it never will be."""

    reason: str = ""
    is_final: bool = False


LARGE = Unsent("it is to be asked for by itself")
DROPPED = Unsent("it can't be pickled, and the uid moves without it")
LATER = Unsent("it is to be asked for again")


Packed = bytes | pickle.PickleBuffer

GONE = Unsent("its pod keeps it no more: the uid was given back, or moved")


class Exports:
    """Gives states away as bytes; the pod keeps each until it is told that another has it.

    What writes a state is the user's code, and runs in threads of its own: one that is slow, or
    hangs, holds up no other.
    """

    def __init__(self, held: Holdings, *, drops_unpicklable: bool) -> None:
        self._held = held
        self._drops = drops_unpicklable
        self._written = threading.Condition(held.lock)

    def some(self, uids: Mapping[str, int]) -> bytes:
        """Return, packed, of each uid its state of that epoch, packed, or an `Unsent`.

        Of those that are many bytes together some are put off, and those that take long: each
        answer comes soon.
        """
        room, soon = _Room(), Deadline.after(_ANSWER_S)
        run_in_line([partial(self._write, *one, room, soon) for one in self._unwritten(uids)])
        self._wait_a_moment(uids)
        room = _Room()
        sent = {uid: self._sent(uid, epoch, room) for uid, epoch in uids.items()}
        return pickle.dumps(sent, pickle.HIGHEST_PROTOCOL)

    def one(self, uid: str, epoch: int) -> Packed:
        """Return one uid's state, packed, which was said to be `LARGE`; empty if it has gone.

        It goes as a buffer, which Ray copies once, and its reader not at all.
        """
        with self._held.lock:
            state = self._kept(uid, epoch)
            if state is None:
                return b""
            found = state.written if state.packed is None else state.packed
            state.written = None  # asked for again, it is written again: it takes as much memory
        return b"" if found is None or isinstance(found, Unsent) else pickle.PickleBuffer(found)

    def _kept(self, uid: str, epoch: int) -> State | None:
        entry = self._held.entries.get(uid)
        is_it = entry is not None and entry.epoch == epoch and uid in self._held.nobodys.kept
        return entry.state if entry is not None and is_it else None

    # Writing.

    def _unwritten(self, uids: Mapping[str, int]) -> list[tuple[str, State]]:
        with self._held.lock:
            found = {uid: self._kept(uid, epoch) for uid, epoch in uids.items()}
            return [
                (uid, state)
                for uid, state in found.items()
                if state is not None
                and not (state.exports or state.packed is not None or state.written is not None)
            ]

    def _write(self, uid: str, state: State, room: _Room, soon: Deadline) -> None:
        """Pickle a state, if there is room and time for it, while nobody changes it."""
        with self._held.lock:
            if (
                room.is_full()
                or not soon.remaining()
                or state.exports
                or state is not self._state_now(uid)
            ):
                return
            state.exports += 1
        written = self._as_bytes(state.value)
        with self._held.lock:
            state.written = written
            state.exports -= 1
            if state is self._state_now(uid):
                self._held.nobodys.slow.discard(uid)
            self._written.notify_all()
        room.take(written)

    def _state_now(self, uid: str) -> State | None:
        return self._held.entries[uid].state if uid in self._held.nobodys.kept else None

    def _as_bytes(self, value: Any) -> bytes | Unsent:
        try:
            return pack(value)
        except BaseException as error:  # noqa: BLE001 - the user's own code: till it ends all wait
            reason = f"its state can't be pickled: {in_words(error)}"
            return DROPPED if self._drops else Unsent(reason, is_final=True)

    def _wait_a_moment(self, uids: Mapping[str, int]) -> None:
        """Return when there is something to say of some uid, or a moment later."""
        with self._written:
            states = {uid: self._kept(uid, epoch) for uid, epoch in uids.items()}
            slow = {uid: it for uid, it in states.items() if it is not None and it.exports}
            if slow:
                self._held.nobodys.slow.update(slow)
                self._held.work.ring()  # others may be given up
            if len(slow) == len(states):
                self._written.wait_for(lambda: not all(it.exports for it in slow.values()), SOON_S)

    # Sending.

    def _sent(self, uid: str, epoch: int, room: _Room) -> bytes | Unsent:
        with self._held.lock:
            state = self._kept(uid, epoch)
            if state is None:
                return GONE
            found = state.written if state.packed is None else state.packed
            if found is None or room.is_full():
                return LATER
            if not isinstance(found, Unsent) and len(found) > _TOGETHER_BYTES:
                return LARGE
            assert not isinstance(found, memoryview)  # only a large one is
            state.written = None
        room.take(found)
        return found


class _Room:
    """How much may go along in one answer."""

    def __init__(self) -> None:
        self._left = _TOGETHER_BYTES

    def is_full(self) -> bool:
        """True if nothing more goes along."""
        return self._left <= 0

    def take(self, found: bytes | Unsent) -> None:
        """Count what goes along."""
        self._left -= len(found) if isinstance(found, bytes) else 0


def _exports(pod: Any) -> Exports:
    exports: Exports = pod._ray_route_agent.gate.exports  # noqa: SLF001 - of our own class
    return exports


def _export(pod: Any, uids: dict[str, int]) -> bytes:
    """Answer a pod that fetches states; see `Exports.some`."""
    return _exports(pod).some(uids)


async def _export_async(pod: Any, uids: dict[str, int]) -> bytes:
    return await asyncio.to_thread(_exports(pod).some, uids)


def _export_one(pod: Any, uid: str, epoch: int) -> Packed:
    """Answer a pod that fetches one large state; see `Exports.one`."""
    return _exports(pod).one(uid, epoch)


def export_methods(*, on_loop: bool) -> dict[str, Any]:
    """Return the methods by which pods are asked for states, in a group of their own."""
    some = _export_async if on_loop else _export
    in_group = ray.method(concurrency_group=EXPORT_GROUP)
    return {"_ray_route_export": in_group(some), "_ray_route_export_one": in_group(_export_one)}


def pack(value: Any) -> bytes:
    """Pickle a state, letting other threads run meanwhile; raise whatever its pickling raises."""
    sink = _Sink()
    cloudpickle.CloudPickler(sink, pickle.HIGHEST_PROTOCOL).dump(value)
    return sink.taken.getvalue()


class _Sink:
    """Takes a pickle in pieces, so that other threads get their turn (see `unpack`)."""

    def __init__(self) -> None:
        self.taken = io.BytesIO()  # whose value is no copy

    def write(self, piece: Any) -> int:
        return self.taken.write(piece)
