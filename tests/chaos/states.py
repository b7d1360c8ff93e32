"""What became of the users' counts, which pods keep in memory: a pure check over a history.

An owner's time with a uid is a *stay*: from the start of `on_acquire` to the end of `on_release`
or `on_lost`. In a stay each call adds one to what was loaded, a release saves what was counted,
and the next stay loads that. Only a process that was stopped, killed or frozen, may take a user
back, and then to what was last saved.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from history import OUTAGES, STOPS, Acknowledged, Fault, History, Hook, Served, life_of

GRACE_S = 20.0
"""How long a pod may take to leave after SIGTERM, which is `deploy`'s own default."""


@dataclass
class Stay:
    """One owner's time with a uid."""

    acquire: Hook
    calls: list[Served] = field(default_factory=list)
    end: Hook | None = None

    @property
    def counts(self) -> list[int]:
        """What the calls that ended made of the count, in order."""
        return sorted(call.count for call in self.calls if call.count is not None)

    @property
    def kept(self) -> int:
        """What the pod's memory held at last."""
        return (self.acquire.count or 0) + len(self.counts)

    @property
    def released_at(self) -> float:
        """When its release had ended; never, if it has not."""
        released = self.end is not None and self.end.kind == "release"
        return self.end.end if released and self.end.end is not None else math.inf

    @property
    def last_seen(self) -> float:
        """The last moment at which it was surely not over."""
        seen = [self.acquire.start, *(call.start for call in self.calls)]
        return max(seen) if self.end is None else self.end.start


class Seen:
    """A history, and when each life was last seen to admit what it served."""

    def __init__(self, history: History) -> None:
        self.history = history
        answered = {call.call for call in history.acknowledged}
        self.served_at: dict[int, float] = defaultdict(float)
        for call in history.served:
            if call.call in answered:
                last = max(call.since, self.served_at[call.incarnation])
                self.served_at[call.incarnation] = last

    def may_have_ended(self, fault: Fault, stay: Stay, by: float) -> bool:
        """True if a fault can have ended the process of a stay by a moment."""
        life = stay.acquire.incarnation
        if fault.incarnation not in (0, life) or fault.at > by:
            return False
        if fault.kind == "restart":  # it leaves in order, unless the store is away
            return any(_overlap(other, fault) for other in self.history.faults)
        over = stay.acquire.start > fault.until or self.served_at[life] > fault.until
        return fault.kind in STOPS and not over


def _overlap(outage: Fault, restart: Fault) -> bool:
    return (
        outage.kind in OUTAGES and outage.at <= restart.at + GRACE_S and outage.until >= restart.at
    )


class TakenBack(NamedTuple):
    """A user that a fault has cost some of their calls."""

    uid: str
    fault: Fault
    calls: int


def state_violations(history: History, *, turns: bool = False) -> list[str]:
    """Return every state that was lost or went back, and every hook out of its turn, in words.

    With `turns`, every call that ran beside another of its uid, too.
    """
    wrong: list[str] = []
    seen = Seen(history)
    for uid, stays in _stays(history, wrong).items():
        if turns:
            wrong += _calls_at_once(uid, stays)
        wrong += _hooks_of_one_epoch(uid, stays)
        wrong += _stays_at_once(history, uid, stays)
        wrong += [what for what in _chain(seen, uid, stays) if isinstance(what, str)]
    return [*wrong, *_answers(history)]


def taken_back(history: History) -> list[TakenBack]:
    """Return the users whom a fault took back, rightly, and by how many calls."""
    seen = Seen(history)
    return [
        what
        for uid, stays in _stays(history, []).items()
        for what in _chain(seen, uid, stays)
        if isinstance(what, TakenBack)
    ]


# Within one process.


def _stays(history: History, wrong: list[str]) -> dict[str, list[Stay]]:
    """Put a history into stays, by uid and epoch; append what does not fit to `wrong`."""
    events: dict[tuple[str, tuple[int, int]], list[Hook | Served]] = defaultdict(list)
    for event in [*history.hooks, *history.served]:
        events[event.uid, life_of(event)].append(event)
    stays: dict[str, list[Stay]] = defaultdict(list)
    for (uid, life), some in events.items():
        some.sort(key=lambda event: event.start)
        stays[uid] += _stays_of_process(some, f"{uid} at {life}", wrong)
    for some_stays in stays.values():
        some_stays.sort(key=lambda stay: (stay.acquire.epoch, stay.acquire.start))
    return stays


def _stays_of_process(events: list[Hook | Served], where: str, wrong: list[str]) -> Iterator[Stay]:
    stay: Stay | None = None
    for event in events:
        if isinstance(event, Served):
            wrong += _misplaced_call(stay, event, where)
            if stay is not None:
                stay.calls.append(event)
        elif event.kind == "acquire":
            wrong += _misplaced_acquire(stay, event, where)
            stay = Stay(event)
            yield stay
        else:
            wrong += _misplaced_end(stay, event, where)
            if stay is not None:
                stay.end = stay.end or event


def _misplaced_call(stay: Stay | None, call: Served, where: str) -> Iterator[str]:
    if stay is None or (stay.end is not None and _ended(stay.end) <= call.start):
        yield f"{where}: {call.call} ran at {call.start:.4f}, which nobody had acquired it for"
        return
    if call.start < _ended(stay.acquire):
        yield f"{where}: {call.call} ran beside on_acquire at {call.start:.4f}"
    if stay.end is not None:
        yield f"{where}: {call.call} ran beside on_{stay.end.kind} at {call.start:.4f}"
    if call.epoch != stay.acquire.epoch:
        yield f"{where}: {call.call} had epoch {call.epoch}, acquired was {stay.acquire.epoch}"


def _calls_at_once(uid: str, stays: list[Stay]) -> Iterator[str]:
    for stay in stays:
        for one, other in pairwise(sorted(stay.calls, key=lambda call: call.start)):
            if other.start < _ended(one):
                yield f"{uid}: {other.call} ran beside {one.call} at {other.start:.4f}"


def _misplaced_acquire(stay: Stay | None, hook: Hook, where: str) -> Iterator[str]:
    if stay is not None and stay.end is None:
        yield f"{where}: on_acquire ran again at {hook.start:.4f}, before any release"
    elif stay is not None and hook.start < _ended(stay.end):
        yield f"{where}: on_acquire ran beside on_{stay.end.kind} at {hook.start:.4f}"


def _misplaced_end(stay: Stay | None, hook: Hook, where: str) -> Iterator[str]:
    what = f"{where}: on_{hook.kind} ran at {hook.start:.4f}"
    if stay is None:
        yield f"{what}, and it was never acquired"
        return
    if stay.end is not None:
        yield f"{what}, after on_{stay.end.kind} at {stay.end.start:.4f}"
    if hook.start < _ended(stay.acquire):
        yield f"{what}, beside on_acquire"
    for call in stay.calls:
        if hook.start < _ended(call):
            yield f"{what}, beside {call.call}"


def _ended(event: Hook | Served | None) -> float:
    return math.inf if event is None or event.end is None else event.end


# Between processes.


def _hooks_of_one_epoch(uid: str, stays: list[Stay]) -> Iterator[str]:
    for one, other in pairwise(stays):
        if one.acquire.epoch == other.acquire.epoch:
            lives = f"{life_of(one.acquire)} and {life_of(other.acquire)}"
            yield f"{uid} was acquired twice under epoch {one.acquire.epoch}, by {lives}"


def _stays_at_once(history: History, uid: str, stays: list[Stay]) -> Iterator[str]:
    for one, other in pairwise(stays):
        begun = other.acquire.start
        until = max(one.last_seen, one.released_at if one.released_at < math.inf else 0.0)
        stopped = [
            fault.at
            for fault in history.faults
            if fault.kind in STOPS
            and fault.incarnation == one.acquire.incarnation
            and fault.at >= one.acquire.start
        ]
        if begun < min([until, *stopped]):
            yield (
                f"{uid} was acquired by {life_of(other.acquire)} at {begun:.4f}, "
                f"while {life_of(one.acquire)} had it until {until:.4f}"
            )


def _chain(seen: Seen, uid: str, stays: list[Stay]) -> Iterator[str | TakenBack]:
    """Follow a count from stay to stay."""
    if stays and stays[0].acquire.count not in (0, None):
        yield f"{uid} began with {stays[0].acquire.count}"
    for number, stay in enumerate(stays):
        following = stays[number + 1] if number + 1 < len(stays) else None
        yield from _within(uid, stay)
        by = math.inf if following is None else following.acquire.start
        if stay.released_at <= by and stay.released_at < math.inf:
            if following is not None and following.acquire.count not in (stay.kept, None):
                yield _on_its_way(seen.history, uid, stay, following)
        elif following is not None or seen.history.shut_down:
            yield from _cut_short(seen, uid, stays[: number + 1], following)


def _on_its_way(history: History, uid: str, stay: Stay, following: Stay) -> str | TakenBack:
    """Judge a count that was released, and is not what the next owner has."""
    since, by = stay.acquire.start, following.acquire.start
    for fault in history.faults:
        stopped = fault.kind in STOPS and since <= fault.until and fault.at <= by
        if stopped and following.acquire.count == 0 and not history.is_saved:
            return TakenBack(uid, fault, stay.kept)  # whoever had it
    return _went(uid, stay, following, "and nobody was stopped")


def _within(uid: str, stay: Stay) -> Iterator[str]:
    begun = stay.acquire.count or 0
    where = f"{uid} at {life_of(stay.acquire)}, epoch {stay.acquire.epoch},"
    if stay.counts != list(range(begun + 1, begun + 1 + len(stay.counts))):
        yield f"{where} was loaded with {begun} and counted {stay.counts}"
    if stay.end is not None and stay.end.count != stay.kept:
        yield f"{where} counted to {stay.kept}, and on_{stay.end.kind} had {stay.end.count}"


def _cut_short(
    seen: Seen, uid: str, stays: list[Stay], following: Stay | None
) -> Iterator[str | TakenBack]:
    """Judge a stay that did not end by a release that was over before the next stay."""
    stay = stays[-1]
    by = math.inf if following is None else following.acquire.start
    faults = seen.history.faults
    fault = next((it for it in faults if seen.may_have_ended(it, stay, by)), None)
    if fault is None:
        how = "it was not released" if stay.end is None else f"on_{stay.end.kind} ran"
        yield (
            f"{uid} was lost by {life_of(stay.acquire)}, which had it since "
            f"{stay.acquire.start:.4f} and was not stopped: {how}, and {stay.kept} was its count"
        )
    if following is None or following.acquire.count is None:
        return
    allowed = _saved(stays, following.acquire) if seen.history.is_saved else {0}
    if following.acquire.count not in allowed:
        yield _went(uid, stay, following, f"where {sorted(allowed)} was saved")
    elif fault is not None and following.acquire.count < stay.kept:
        yield TakenBack(uid, fault, stay.kept - following.acquire.count)


def _went(uid: str, stay: Stay, following: Stay, why: str) -> str:
    return (
        f"{uid} went from {stay.kept} at {life_of(stay.acquire)} to {following.acquire.count} "
        f"at {life_of(following.acquire)}, {following.acquire.start:.4f}, {why}"
    )


def _saved(stays: list[Stay], load: Hook) -> set[int]:
    """Return what a load can have found: the last save, or one that was under way."""
    saves = [stay.end for stay in stays if stay.end is not None and stay.end.kind == "release"]
    done = [save for save in saves if _ended(save) <= load.start]
    last = max(done, key=lambda save: save.epoch, default=None)
    allowed = {0 if last is None else last.count or 0}
    for save in saves:
        if (last is None or save.epoch > last.epoch) and save.start < _ended(load):
            allowed.add(save.count or 0)
    return allowed


# What callers were told.


def _answers(history: History) -> Iterator[str]:
    ranks = {
        (call.call, call.count): (call.epoch, call.count)
        for call in history.served
        if call.count is not None
    }
    told: dict[str, list[Acknowledged]] = defaultdict(list)
    for answer in history.acknowledged:
        if answer.count is None:
            continue
        if (answer.call, answer.count) in ranks:
            told[answer.uid].append(answer)
        else:
            yield f"{answer.call} of {answer.uid} was told {answer.count}, which no pod counted"
    for uid, answers in told.items():
        yield from _in_order(uid, answers, ranks)


def _in_order(
    uid: str, answers: list[Acknowledged], ranks: dict[tuple[str, int | None], tuple[int, int]]
) -> Iterator[str]:
    """Find answers that are no later than what was told before they were asked for."""
    ended = sorted(answers, key=lambda answer: answer.answered)
    done, highest = 0, (0, 0)
    for answer in sorted(answers, key=lambda answer: answer.asked):
        while done < len(ended) and ended[done].answered <= answer.asked:
            highest = max(highest, ranks[ended[done].call, ended[done].count])
            done += 1
        rank = ranks[answer.call, answer.count]
        if rank <= highest:
            yield (
                f"{answer.call} of {uid} was told {rank[1]} under epoch {rank[0]}, "
                f"after {highest[1]} under epoch {highest[0]}"
            )
