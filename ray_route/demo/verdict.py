"""What a replay must have kept, checked on what was recorded of it. Pure: no Ray, no clock.

The witnesses are independent: the client's acknowledgements, each living pod's own record of
what it handled, and the links as stored in Redis.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from ray_route.model import Pod

_SHOWN = 5


class Owner(NamedTuple):
    """A pod in one of its lives: memory ends with the life."""

    pod: int
    incarnation: int


class Ack(NamedTuple):
    """A pod's answer that it has handled an event, for which uid, and in which life."""

    event: int
    uid: str
    owner: Owner


class Move(NamedTuple):
    """The first event of a uid that another owner handled than the one before."""

    event: int
    uid: str
    source: Owner
    target: Owner


@dataclass(frozen=True, slots=True)
class Record:
    """What a living pod remembers: the events that it handled, and its count for each uid.

    `repeats` counts events that came again and were recognized.
    """

    events: Sequence[int]
    counts: Mapping[str, int]
    repeats: int = 0


@dataclass(frozen=True, slots=True)
class Kill:
    """A pod's death, some time after event `at` - 1 was acknowledged."""

    victim: Owner
    at: int


@dataclass(frozen=True, slots=True)
class ScaleOut:
    """Pods that were added, none of them before event `at` - 1 was acknowledged."""

    pods: Sequence[int]
    at: int


@dataclass(frozen=True)
class History:
    """All that was recorded of a replay. Event i was for `log[i]`."""

    log: Sequence[str]
    acks: Sequence[Ack]
    records: Mapping[Owner, Record]
    links: Mapping[str, int]
    failures: Mapping[int, str] = field(default_factory=dict)
    kill: Kill | None = None
    scale_out: ScaleOut | None = None

    @cached_property
    def in_order(self) -> list[Ack]:
        """Acknowledgements in the order of their events."""
        return sorted(self.acks, key=lambda ack: ack.event)

    @cached_property
    def acked(self) -> dict[Owner, set[int]]:
        """Events that each owner acknowledged."""
        events: dict[Owner, set[int]] = defaultdict(set)
        for ack in self.acks:
            events[ack.owner].add(ack.event)
        return dict(events)

    @cached_property
    def last_owner(self) -> dict[str, Owner]:
        """The owner of each uid's last event."""
        return {ack.uid: ack.owner for ack in self.in_order}

    @cached_property
    def moves(self) -> list[Move]:
        """All changes of owner, in the order of events."""
        found, owners = [], dict[str, Owner]()
        for event, uid, owner in self.in_order:
            source = owners.setdefault(uid, owner)
            if source != owner:
                found.append(Move(event, uid, source, owner))
            owners[uid] = owner
        return found

    @cached_property
    def unasked_moves(self) -> list[Move]:
        """Moves that the death of the uid's own pod does not account for."""
        return [move for move in self.moves if not self._is_due(move)]

    def _is_due(self, move: Move) -> bool:
        return (
            self.kill is not None and move.source == self.kill.victim and move.event >= self.kill.at
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """A replay that has ended: its history, its duration, and the pods at its end."""

    history: History
    seconds: float
    pods: Mapping[int, Pod]


@dataclass(frozen=True, slots=True)
class Check:
    """One promise, how it went, and what breaks it, if anything does."""

    promise: str
    finding: str
    problems: Sequence[str]

    @property
    def kept(self) -> bool:
        """True if nothing breaks the promise."""
        return not self.problems


def judge(history: History) -> list[Check]:
    """Check every promise that applies to this replay."""
    checks = [exactly_once(history), one_pod(history)]
    if history.kill is not None:
        checks.append(only_the_dead_move(history, history.kill))
    if history.scale_out is not None:
        checks.append(nobody_moves(history, history.scale_out))
    return [*checks, links_agree(history)]


def exactly_once(history: History) -> Check:
    """Every event was acknowledged once, and living pods remember just what they acknowledged.

    An event that a pod handled and died before acknowledging is handled again elsewhere: the
    first handling is gone with that pod's memory.
    """
    finding = f"{len(history.log):,} events, {len(history.acks):,} acknowledged"
    finding += f"; the records of {len(history.records)} living pods agree"
    repeats = sum(record.repeats for record in history.records.values())
    if repeats:
        finding += f"; {repeats:,} came again to the same pod and counted once"
    if history.kill is not None:
        dead = len(history.acked.get(history.kill.victim, ()))
        finding += f"; {dead:,} were acknowledged by pod {history.kill.victim.pod} before it died"
    problems = [*_acknowledgement_problems(history), *_record_problems(history)]
    return Check("every event was handled exactly once", finding, problems)


def _acknowledgement_problems(history: History) -> list[str]:
    times = Counter(ack.event for ack in history.acks)
    lost = [event for event in range(len(history.log)) if not times[event]]
    strays = [
        ack.event
        for ack in history.acks
        if not 0 <= ack.event < len(history.log) or history.log[ack.event] != ack.uid
    ]
    first_error = next((f": {why}" for _, why in sorted(history.failures.items())), "")
    twice = [event for event, count in times.items() if count > 1]
    return [
        *_problem("events without an acknowledgement", lost, first_error),
        *_problem("events acknowledged more than once", twice),
        *_problem("events acknowledged for another uid than theirs", strays),
    ]


def _record_problems(history: History) -> list[str]:
    victim = history.kill.victim if history.kill is not None else None
    problems = []
    for owner, record in history.records.items():
        problems += _one_record_problems(history, owner, record)
    holders = Counter(event for record in history.records.values() for event in set(record.events))
    several = [event for event, count in holders.items() if count > 1]
    silent = sorted(set(history.acked) - set(history.records) - {victim})
    return [
        *problems,
        *_problem("events in the records of two living pods", several),
        *_problem("pods that died unasked", [owner.pod for owner in silent]),
    ]


def _one_record_problems(history: History, owner: Owner, record: Record) -> list[str]:
    acked, handled = history.acked.get(owner, set()), set(record.events)
    repeated = [event for event, times in Counter(record.events).items() if times > 1]
    valid = [event for event in record.events if 0 <= event < len(history.log)]
    counted = Counter(history.log[event] for event in valid)
    wrong = sorted(
        uid for uid in {*counted, *record.counts} if counted[uid] != record.counts.get(uid, 0)
    )
    return [
        *_problem(f"events handled twice by pod {owner.pod}", repeated),
        *_problem(f"events handled by pod {owner.pod}, not acknowledged by it", handled - acked),
        *_problem(f"events acknowledged by pod {owner.pod}, not in its record", acked - handled),
        *_problem(f"uids that pod {owner.pod} counted wrongly", wrong),
    ]


def one_pod(history: History) -> Check:
    """Every uid was handled by one pod, unless that died: then by one more, after it."""
    moved = {move.uid for move in history.moves} - {move.uid for move in history.unasked_moves}
    finding = (
        f"{len(history.last_owner):,} uids, {len(history.last_owner) - len(moved):,} by one pod"
    )
    if history.kill is not None:
        finding += f", {len(moved):,} by the dead pod and then by one other"
    problems = _problem("uids handled by several pods", _uids(history.unasked_moves))
    return Check("every uid was handled by exactly one pod", finding, problems)


def only_the_dead_move(history: History, kill: Kill) -> Check:
    """Only uids of the pod that died moved, each once, and none ever back to that life."""
    victim = kill.victim
    owned = {ack.uid for ack in history.acks if ack.owner == victim}
    others = len(history.last_owner) - len(owned)
    times = Counter(move.uid for move in history.moves)
    moved = sum(1 for move in history.moves if move.source == victim)
    finding = (
        f"pod {victim.pod} died after event {kill.at:,} with {len(owned):,} uids: {moved:,} of "
    )
    finding += f"them came again and moved, once each; 0 of the {others:,} others moved"
    survivors = _uids(move for move in history.moves if move.source != victim)
    early = _uids(m for m in history.moves if m.source == victim and m.event < kill.at)
    problems = [
        *_problem("uids of living pods that moved", survivors),
        *_problem("uids that moved before the death", early),
        *_problem("uids that moved more than once", [uid for uid, n in times.items() if n > 1]),
        *_problem("uids that moved back", _uids(m for m in history.moves if m.target == victim)),
        *_problem("pods that were killed and live", [victim.pod] * (victim in history.records)),
    ]
    return Check("only the uids of the pod that died moved", finding, problems)


def nobody_moves(history: History, scale_out: ScaleOut) -> Check:
    """No uid that had a pod moved when pods were added: these got new uids alone."""
    at, added = scale_out.at, set(scale_out.pods)
    placed = {ack.uid for ack in history.acks if ack.event < at}
    on_new = {ack.uid for ack in history.acks if ack.owner.pod in added}
    inherited = {m.uid for m in history.moves if m.target.pod in added} - set(
        _uids(history.unasked_moves)
    )
    finding = f"{_pods(scale_out.pods)} came after event {at:,}: 0 of {len(placed):,} uids moved; "
    finding += f"the new pods got {len(on_new - inherited):,} new uids"
    if history.kill is not None:
        finding += f", and {len(inherited):,} of the dead pod's"
    moved = _uids(move for move in history.unasked_moves if move.uid in placed and move.event >= at)
    early = [ack.event for ack in history.acks if ack.owner.pod in added and ack.event < at]
    absent = sorted(added - {owner.pod for owner in history.records})
    problems = [
        *_problem("uids that had a pod moved", moved),
        *_problem("events handled by pods that were not there yet", early),
        *_problem("new pods that are not there", absent),
    ]
    return Check("adding pods moved no uid", finding, problems)


def links_agree(history: History) -> Check:
    """Every uid's stored link names the pod that handled the uid last."""
    elsewhere = [
        uid for uid, owner in history.last_owner.items() if history.links.get(uid) != owner.pod
    ]
    finding = f"{len(history.links):,} links as stored in Redis"
    problems = _problem("uids whose link names another pod or none", elsewhere)
    return Check("the directory names the pod that handled the uid last", finding, problems)


def _uids(moves: Iterable[Move]) -> list[str]:
    return list(dict.fromkeys(move.uid for move in moves))


def _pods(pods: Sequence[int]) -> str:
    return f"pod{'s' * (len(pods) > 1)} {', '.join(map(str, pods))}"


def _problem(what: str, found: Iterable[object], why: str = "") -> list[str]:
    """Name the first few of what was found, if anything was."""
    items = list(found)
    if not items:
        return []
    shown = ", ".join(str(item) for item in items[:_SHOWN])
    return [f"{len(items):,} {what} ({shown}{', …' * (len(items) > _SHOWN)}){why}"]
