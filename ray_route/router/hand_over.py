"""Many uids of one living pod go to others, each as it is given up, and with its state."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ray_route.errors import DamagedKeyError, RouteError, StateNotMovedError
from ray_route.model import Link, PodRecord
from ray_route.protocol.commands import Address, Cancel, Outcome, Release
from ray_route.router.carrier import Answer, Carrier
from ray_route.router.in_move import InMove
from ray_route.router.mailbox import Followed, Mailboxes
from ray_route.router.placer import Proposal

_LOOK_S = 0.2
# Those that are given up within so short a time go on together: to bring a few to their next pod
# takes as many messages as to bring many.
_TOGETHER_S = 0.01
# A state may be a gigabyte, and a pod that fetches it may be busy.
_FETCH_S = 60.0
_ATTEMPTS = 2

Damages = dict[str, DamagedKeyError]


class Step(NamedTuple):
    """What has just become of some uids, and how many are left.

    `damaged` have links that can't be read or written. `back` are those that could not be moved,
    and are their pod's again; of them `stuck` have states that can't be moved at all.
    """

    moved: int
    left: int
    damaged: Damages
    stuck: dict[str, StateNotMovedError]
    back: dict[str, StateNotMovedError]


class Places(Protocol):
    """Says where uids go that their pod has given up; so does a `Directory`."""

    def propose(self, service: str, uids: Iterable[str], /) -> Proposal:
        """Choose a pod for each; raise why there is none."""

    async def give_away(
        self, service: str, lost: Mapping[str, Link], node: None, /
    ) -> dict[str, Answer]:
        """Link each that has no state to one, if nobody was faster."""


Note = Callable[[Step], None]
Stale = Callable[[str, "dict[str, int]"], None]


@dataclass
class HandOver:
    """One release of many uids. What it has begun to give to others goes on, whoever ends it."""

    places: Places
    mailboxes: Mailboxes
    carrier: Carrier
    in_move: InMove
    stale: Stale
    service: str
    links: Mapping[str, Link]
    note: Note
    attempts: int = _ATTEMPTS
    """How many targets are tried for a uid with a state, should the first die, say."""
    kept: list[str] = field(default_factory=list)
    waiting: set[str] = field(default_factory=set)
    marked: set[str] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    steps: list[Step] = field(default_factory=list)

    async def run(self, patience_s: float, *, closes: bool) -> list[str]:
        """Return the uids that their pod has kept; see `Moves.hand_over`."""
        self.waiting = set(self.links)
        epochs = {uid: link.epoch for uid, link in self.links.items()}
        replaced = {uid: link.replaced for uid, link in self.links.items() if link.replaced}
        release = Release(epochs, patience_s, closes, replaced)
        with self.mailboxes.following(self._address, release, self._told) as outcomes:
            try:
                while self.waiting or self.tasks:
                    self._begin(await self._next(outcomes), patience_s)
                    self._note_ended()
            except BaseException:  # a task that is cancelled, too: whatever ends it
                self.mailboxes.post(self._address, Cancel(outcomes.number))
                raise
            finally:
                self._unmark(set(self.marked))
        return self.kept

    @property
    def _address(self) -> Address:
        some = next(iter(self.links.values()))
        return self.service, some.pod, some.incarnation

    def _told(self, outcome: Outcome) -> None:
        """Have a uid left alone from the moment in which it is told that it was given up."""
        if outcome.given and outcome.uid in self.waiting and outcome.uid not in self.marked:
            self.marked.add(outcome.uid)
            self.in_move.mark((self.service, outcome.uid))

    def _unmark(self, uids: set[str]) -> None:
        self.marked -= uids
        self.in_move.unmark((self.service, uid) for uid in uids)

    async def _next(self, outcomes: Followed) -> list[Outcome]:
        """Return what is told next; nothing if that takes a while, as hooks may."""
        if self.waiting:
            some = await outcomes.some_or_none(_LOOK_S)
            if some and len(some) < len(self.waiting):
                await asyncio.sleep(_TOGETHER_S)
                some += outcomes.told()
        else:
            await asyncio.wait(self.tasks, timeout=_LOOK_S, return_when="FIRST_COMPLETED")
            some = []
        new = [outcome for outcome in some if outcome.uid in self.waiting]
        self.waiting -= {outcome.uid for outcome in new}
        self.kept += [outcome.uid for outcome in new if not outcome.given]
        return [outcome for outcome in new if outcome.given]

    def _begin(self, given: list[Outcome], patience_s: float) -> None:
        # Whom somebody else moves, by a call of his own, is his: he is told the same of it.
        mine = [it for it in given if not self.in_move.has_turn(self.service, it.uid)]
        self._unmark({it.uid for it in given} - {it.uid for it in mine})
        plain = {it.uid: self.links[it.uid] for it in mine if not it.has_state}
        carried = {it.uid: self.links[it.uid] for it in mine if it.has_state}
        if plain:
            self._start(plain, self._give_away(plain))
        if carried:
            self._start(carried, self._carry(carried, max(patience_s, _FETCH_S), self.attempts))
        if given and not mine:
            self.note(Step(0, self._left, {}, {}, {}))

    def _start(self, links: dict[str, Link], work: Coroutine[Any, Any, None]) -> None:
        """Begin with some, which loses each as soon as it is somebody's again."""
        self.marked -= links.keys()  # the task has them now
        self.tasks.add(self.carrier.go_on(self._to_its_end(links, work)))

    async def _to_its_end(self, links: dict[str, Link], work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            self._over(links, set(links))

    def _over(self, links: dict[str, Link], uids: set[str]) -> None:
        """Let whoever waits for some of a task's uids go on."""
        for uid in uids & links.keys():
            del links[uid]
            self.in_move.unmark([(self.service, uid)])

    @property
    def _left(self) -> int:
        return len(self.waiting) + len(self.kept)

    def _note_ended(self) -> None:
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.discard(task)
            task.result()
        steps, self.steps = self.steps, []
        for step in steps:
            self.note(step._replace(left=self._left))

    # Without a state.

    async def _give_away(self, links: dict[str, Link]) -> None:
        """Give uids that their owner has given up to others."""
        answers = await self.places.give_away(self.service, links, None)
        moved = _moved(links, answers)
        self.stale(self.service, moved)
        self.carrier.dropped(self.service, {uid: links[uid] for uid in moved})
        self.steps.append(summed(links, answers))

    # With one.

    async def _carry(self, links: dict[str, Link], within_s: float, attempts: int) -> None:
        """Give uids to others with their states; what nobody takes is given back.

        If its target dies, another is looked for.
        """
        try:
            proposal = self.places.propose(self.service, links)
            groups: defaultdict[int, dict[str, Link]] = defaultdict(dict)
            for uid, pod in proposal.chosen.items():
                groups[pod][uid] = links[uid]
            how = (within_s, attempts - 1)
            ways = (
                self._carry_to(proposal.pods[pod], some, links, *how)
                for pod, some in groups.items()
            )
            for problem in await asyncio.gather(*ways, return_exceptions=True):
                if problem is not None:
                    raise problem
            _raise_first(proposal.refused, {})
        finally:
            await self.carrier.give_back(self.service, links)

    async def _carry_to(
        self,
        target: PodRecord,
        some: dict[str, Link],
        links: dict[str, Link],
        within_s: float,
        attempts: int,
    ) -> None:
        """Give some of the links of a task to one pod: none waits for another that is slow."""
        problems: list[RouteError] = []
        async for answers in self.carrier.carry(self.service, some, target, within_s):
            unmoved = {uid: it for uid, it in answers.items() if _has_not_moved(it)}
            again = {uid: some[uid] for uid in unmoved if attempts and _may_try_again(answers[uid])}
            back = {uid: some[uid] for uid in unmoved.keys() - again.keys()}
            await self.carrier.give_back(self.service, back)
            self._try_again(again, within_s, attempts)
            self._over(links, set(answers))
            known = {uid: it for uid, it in answers.items() if uid not in again}
            try:
                self.steps.append(summed(some, known))
            except RouteError as error:  # the others go on
                problems.append(error)
        if problems:
            raise problems[0]

    def _try_again(self, links: dict[str, Link], within_s: float, attempts: int) -> None:
        if links:
            for uid in links:
                self.in_move.mark((self.service, uid))
            self._start(links, self._carry(links, within_s, attempts))


def damaged_of(outcomes: Mapping[str, object]) -> Damages:
    """Return the uids whose links are damaged, with the errors that name their keys."""
    return {uid: it for uid, it in outcomes.items() if isinstance(it, DamagedKeyError)}


def summed(links: Mapping[str, Link], answers: Mapping[str, Answer]) -> Step:
    """Say what has become of links that were to be moved; raise the error of what is unknown."""
    damaged = damaged_of(answers)
    unmoved = {uid: it for uid, it in answers.items() if isinstance(it, StateNotMovedError)}
    _raise_first(answers, {**damaged, **unmoved})
    stuck = {uid: error for uid, error in unmoved.items() if error.is_final}
    return Step(len(_moved(links, answers)), 0, damaged, stuck, unmoved)


def _moved(links: Mapping[str, Link], answers: Mapping[str, Answer]) -> dict[str, int]:
    """Return the epochs of the links that are another pod's now."""
    return {
        uid: link.epoch
        for uid, link in links.items()
        if isinstance(answer := answers.get(uid), Link) and not _is_same_pod(answer, link)
    }


def _raise_first(answers: Mapping[str, Answer], known: Mapping[str, object]) -> None:
    for uid, answer in answers.items():
        if isinstance(answer, RouteError) and uid not in known:
            raise answer


def _has_not_moved(answer: Answer) -> bool:
    return isinstance(answer, StateNotMovedError)


def _may_try_again(answer: Answer) -> bool:
    return isinstance(answer, StateNotMovedError) and not answer.is_final


def _is_same_pod(answer: Link, link: Link) -> bool:
    return (answer.pod, answer.incarnation) == (link.pod, link.incarnation)
