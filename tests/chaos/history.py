"""What happened under faults, and what must not have: a pure check over a recorded history."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise


@dataclass(frozen=True)
class Served:
    """One call that a pod admitted; `end` is None if its process ended during it."""

    call: str
    uid: str
    epoch: int
    pod: int
    incarnation: int
    start: float
    end: float | None


@dataclass(frozen=True)
class Acknowledged:
    """One call whose result reached its caller."""

    call: str
    uid: str
    asked: float
    answered: float


@dataclass(frozen=True)
class Fault:
    """What was done to which life, and until when (a freeze ends)."""

    kind: str
    at: float
    incarnation: int = 0
    until: float = float("inf")


@dataclass
class History:
    """All that was seen, on one clock."""

    served: list[Served] = field(default_factory=list)
    acknowledged: list[Acknowledged] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    ended: float = float("inf")


def violations(history: History, unserved_bound_s: float) -> list[str]:
    """Return every violated promise, in words; an empty list is a pass."""
    return [
        *_two_owners(history),
        *_epochs_back(history.served),
        *_epochs_shared(history.served),
        *_lost(history),
        *_unserved(history, unserved_bound_s),
    ]


def _two_owners(history: History) -> Iterator[str]:
    for uid, calls in _by_uid(_clipped(history)).items():
        last: Served | None = None
        for call in sorted(calls, key=lambda served: served.start):
            if last is not None and call.start < _end(last) and _life(call) != _life(last):
                yield f"{uid} was served by {_life(last)} and {_life(call)} at {call.start:.4f}"
            if last is None or _end(call) > _end(last):
                last = call


def _clipped(history: History) -> Iterator[Served]:
    """Cut calls where their process was stopped: a running call can't be called back.

    What it does after it wakes is refused when it returns, and its own writes can be fenced.
    """
    for call in history.served:
        end = call.end
        for fault in history.faults:
            if fault.incarnation == call.incarnation and call.start <= fault.at:
                end = fault.at if end is None else min(end, fault.at)
        yield replace(call, end=call.start if end is None else end)


def _epochs_back(served: Iterable[Served]) -> Iterator[str]:
    for uid, calls in _by_uid(served).items():
        for one, other in pairwise(sorted(calls, key=lambda served: served.start)):
            if other.epoch < one.epoch:
                yield f"{uid} went back from epoch {one.epoch} to {other.epoch}"


def _epochs_shared(served: Iterable[Served]) -> Iterator[str]:
    owners: dict[tuple[str, int], set[tuple[int, int]]] = defaultdict(set)
    for call in served:
        owners[call.uid, call.epoch].add(_life(call))
    for (uid, epoch), lives in owners.items():
        if len(lives) > 1:
            yield f"{uid} epoch {epoch} names {sorted(lives)}"


def _lost(history: History) -> Iterator[str]:
    seen = {call.call for call in history.served if call.end is not None}
    for call in history.acknowledged:
        if call.call not in seen:
            yield f"{call.call} of {call.uid} was acknowledged and is in no pod's log"


def _unserved(history: History, bound_s: float) -> Iterator[str]:
    for call in history.acknowledged:
        if call.answered - call.asked > bound_s:
            yield f"{call.uid} waited {call.answered - call.asked:.2f} s, from {call.asked:.2f}"


def unexplained_moves(history: History) -> list[str]:
    """Return every change of an owner whose life no fault had struck before."""
    struck = {fault.incarnation: fault.at for fault in reversed(history.faults)}
    moved = []
    for uid, calls in _by_uid(history.served).items():
        for one, other in pairwise(sorted(calls, key=lambda served: served.start)):
            if other.epoch != one.epoch and struck.get(one.incarnation, math.inf) > other.start:
                moved.append(f"{uid} left {_life(one)} at {other.start:.2f} for no reason")
    return moved


def recovery_s(history: History, kind: str) -> list[float]:
    """Return how long calls of a struck life's uids waited for their first answer after it.

    A fault that names no life struck them all.
    """
    waits = []
    for fault in history.faults:
        if fault.kind != kind:
            continue
        struck = {
            call.uid
            for call in history.served
            if fault.incarnation in (0, call.incarnation) and call.start <= fault.at
        }
        first: dict[str, float] = {}
        for call in history.acknowledged:
            if call.uid in struck and call.answered >= fault.at and call.asked <= fault.at + 1:
                if _struck_again(history, fault, call.answered):
                    continue
                wait = call.answered - max(fault.at, call.asked)
                first[call.uid] = max(wait, first.get(call.uid, 0.0))
        waits.extend(first.values())
    return sorted(waits)


def _struck_again(history: History, fault: Fault, until: float) -> bool:
    """True if another fault came in between: what it cost is not this one's."""
    return any(other is not fault and fault.at <= other.at <= until for other in history.faults)


def _by_uid(served: Iterable[Served]) -> dict[str, list[Served]]:
    calls: dict[str, list[Served]] = defaultdict(list)
    for call in served:
        calls[call.uid].append(call)
    return calls


def _life(call: Served) -> tuple[int, int]:
    return call.pod, call.incarnation


def _end(call: Served) -> float:
    return call.start if call.end is None else call.end
