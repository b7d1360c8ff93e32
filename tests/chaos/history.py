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
    count: int | None = None
    """The user's count after it, in the pod's memory."""
    admitted: float | None = None
    """When its pod admitted it, before it began."""

    @property
    def since(self) -> float:
        """When it was admitted: its process may have been stopped between that and its beginning.

        It begins when its process goes on, then: no check that a process makes of itself can be
        so late that nothing comes after it.
        """
        return self.start if self.admitted is None else self.admitted


@dataclass(frozen=True)
class Hook:
    """One run of a hook; `end` is None if its process ended during it.

    `count` is what an "acquire" loaded, a "release" saves, or a "lost" dropped.
    """

    kind: str
    uid: str
    epoch: int
    pod: int
    incarnation: int
    start: float
    end: float | None
    count: int | None


@dataclass(frozen=True)
class Acknowledged:
    """One call whose result reached its caller."""

    call: str
    uid: str
    asked: float
    answered: float
    count: int | None = None


@dataclass(frozen=True)
class Fault:
    """What was done to which life (0: to none, or to all), until when, and to which uids."""

    kind: str
    at: float
    incarnation: int = 0
    until: float = float("inf")
    uids: frozenset[str] = frozenset()


STOPS = frozenset({"kill", "freeze", "starved", "partition"})
"""What stops a process where it stands: it can't say what becomes of its users.

A process is "starved" that did not run for long, since the machine had no time for it. A pod in a
"partition" is cut off from the store alone: it stops by itself, and others may have its users.
"""
SETTLED_S = 15.0
"""How long after a fault its last consequence may come: hooks end, uids are given back."""
WORTH_TELLING_S = 0.05
OUTAGES = frozenset({"cut", "stall", "pause", "crash", "flush", "full", "unreplicated"})
"""Faults of the store: what they cost counts from their end, not from their beginning."""


@dataclass
class History:
    """All that was seen, on one clock."""

    served: list[Served] = field(default_factory=list)
    acknowledged: list[Acknowledged] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    hooks: list[Hook] = field(default_factory=list)
    shut_down: bool = False
    """All pods have been ended in order: none may hold anything any more."""
    is_saved: bool = True
    """What a release counts is saved, too; else it is in memory alone, here or on its way."""


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
            if last is not None and call.start < _end(last) and life_of(call) != life_of(last):
                yield f"{uid} was served by {life_of(last)} and {life_of(call)} at {call.start:.4f}"
            if last is None or _end(call) > _end(last):
                last = call


def _clipped(history: History) -> Iterator[Served]:
    """Cut calls where their process was stopped: a running call can't be called back.

    What it does after it wakes is refused when it returns, and its own writes can be fenced.
    """
    stops = [fault for fault in history.faults if fault.kind in STOPS]
    for call in history.served:
        end = call.end
        for fault in stops:
            if fault.incarnation == call.incarnation and call.since <= fault.at:
                end = fault.at if end is None else min(end, fault.at)
        end = call.start if end is None else end
        yield replace(call, start=min(call.start, end), end=end)


def _epochs_back(served: Iterable[Served]) -> Iterator[str]:
    for uid, calls in _by_uid(served).items():
        for one, other in pairwise(sorted(calls, key=lambda served: served.since)):
            if other.epoch < one.epoch:
                yield f"{uid} went back from epoch {one.epoch} to {other.epoch}"


def _epochs_shared(served: Iterable[Served]) -> Iterator[str]:
    owners: dict[tuple[str, int], set[tuple[int, int]]] = defaultdict(set)
    for call in served:
        owners[call.uid, call.epoch].add(life_of(call))
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
    """Return every change of an owner whose life or uid no fault had struck before."""
    moved = []
    for uid, calls in _by_uid(history.served).items():
        for one, other in pairwise(sorted(calls, key=lambda served: served.since)):
            if other.epoch != one.epoch and not any(
                _explains(fault, one, other) for fault in history.faults
            ):
                moved.append(f"{uid} left {life_of(one)} at {other.start:.2f} for no reason")
    return moved


def lives_between(history: History, begun: float, over: float) -> set[int]:
    """Return the lives that served, or ran a hook, within that time."""
    return {
        event.incarnation
        for event in [*history.served, *history.hooks]
        if event.start <= over and (event.end is None or event.end >= begun)
    }


def _explains(fault: Fault, one: Served, other: Served) -> bool:
    """True if a fault can have ended an owner's time between two calls."""
    if fault.at > other.start:
        return False
    lately = one.uid in fault.uids and one.start <= fault.until + SETTLED_S
    return lately or fault.incarnation == one.incarnation


def recovery_s(history: History, kind: str) -> list[float]:
    """Return how long calls of uids that a fault struck waited until a pod took them up.

    From the fault on, or from the end of an outage of the store, to `on_acquire` or to the call.
    The users' own hooks in between don't count. A fault that names no life struck them all.
    """
    begun = {call.call: call.start for call in sorted(history.served, key=lambda it: it.start)}
    waits = []
    for fault in history.faults:
        if fault.kind != kind:
            continue
        over = fault.until if kind in OUTAGES else fault.at
        struck = _struck(history, fault)
        first: dict[str, float] = {}
        for call in history.acknowledged:
            if call.uid not in struck or call.answered < over:
                continue
            if call.asked > over + 1:
                continue
            since, served = max(over, call.asked), begun.get(call.call, call.answered)
            taken_up = _taken_up(history, call.uid, since, served)
            if _struck_again(history, fault, taken_up):
                continue
            wait = max(0.0, taken_up - since - _hooked_s(history, call.uid, since, taken_up))
            first[call.uid] = max(wait, first.get(call.uid, 0.0))
        waits.extend(first.values())
    return sorted(waits)


def waits_s(history: History) -> dict[str, list[float]]:
    """Return, by kind of fault, how long calls during it waited until they were served.

    The users' own hooks don't count.
    """
    begun = {call.call: call.start for call in sorted(history.served, key=lambda it: it.start)}
    waits: dict[str, list[float]] = defaultdict(list)
    for call in history.acknowledged:
        served = begun.get(call.call, call.answered)
        if served - call.asked < WORTH_TELLING_S:
            continue
        wait = served - call.asked - _hooked_s(history, call.uid, call.asked, served)
        for fault in history.faults:
            if fault.at <= served and min(fault.until, fault.at + SETTLED_S) >= call.asked:
                waits[fault.kind].append(wait)
    return waits


def _struck(history: History, fault: Fault) -> set[str]:
    return {
        call.uid
        for call in history.served
        if fault.incarnation in (0, call.incarnation) and call.start <= fault.at
    }


def _struck_again(history: History, fault: Fault, until: float) -> bool:
    """True if another fault was at work in between: what it cost is not this one's."""
    return any(
        other is not fault
        and other.at <= until
        and (other.at >= fault.at or fault.at <= other.until < math.inf)
        for other in history.faults
    )


def _taken_up(history: History, uid: str, since: float, served: float) -> float:
    """Return when a pod began to work for a call: with the uid's `on_acquire`, or at once."""
    acquired = [hook.start for hook in history.hooks if (hook.uid, hook.kind) == (uid, "acquire")]
    return min((at for at in acquired if since <= at <= served), default=served)


def _hooked_s(history: History, uid: str, start: float, end: float) -> float:
    return sum(
        max(0.0, min(end, hook.end) - max(start, hook.start))
        for hook in history.hooks
        if hook.uid == uid and hook.end is not None
    )


def _by_uid(served: Iterable[Served]) -> dict[str, list[Served]]:
    calls: dict[str, list[Served]] = defaultdict(list)
    for call in served:
        calls[call.uid].append(call)
    return calls


def life_of(call: Served | Hook) -> tuple[int, int]:
    """Return which life of which pod it was."""
    return call.pod, call.incarnation


def _end(call: Served) -> float:
    return call.start if call.end is None else call.end
