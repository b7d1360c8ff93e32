"""Uids change their pod with their state, safe at each step, whoever dies.

The owner has given the uid up and keeps its state. The target fetches that, reads it into its own
memory, and says so; only then is the link changed, off exactly the epoch that was given up. The
target uses the state only if its link replaced that epoch, the owner drops its own when the link is
another's. What fails before gives the uid back to its owner, under a new epoch: so what has arrived
at a target can never be taken for something later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from typing import Any

from ray_route.clock import Deadline, now
from ray_route.errors import PodUnavailableError, RouteError, StateNotMovedError
from ray_route.model import Link, PodRecord
from ray_route.protocol.commands import Address, Fate, Given, Settled, Settlement, Take, Taken
from ray_route.router.link_table import LinkTable
from ray_route.router.mailbox import Mailboxes, NoAnswerError
from ray_route.router.membership import Membership
from ray_route.store.links import Why

_ANSWER_S = 5.0
_QUIET_LOOK_S = 0.01
_WHY: dict[Fate, Why] = {Fate.GOES: "wanted", Fate.UNUSED: "unused", Fate.MAY_GO: "due"}

logger = logging.getLogger(__name__)

Answer = Link | RouteError
"""What became of a uid."""
Stale = Callable[[str, "dict[str, int]"], None]


class Carrier:
    """Brings states to their next pods, and settles whose a uid is. Belongs to one event loop.

    `stale` is told which links, up to which epoch, no cache may serve any more.
    """

    def __init__(
        self, membership: Membership, links: LinkTable, mailboxes: Mailboxes, stale: Stale
    ) -> None:
        self._membership = membership
        self._links = links
        self._mailboxes = mailboxes
        self._stale = stale
        self._coming: Counter[tuple[str, int]] = Counter()
        self._tasks: set[asyncio.Task[Any]] = set()

    def go_on(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run what must not end with whoever asked for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:  # whoever waited has heard it
            logger.debug("a hand-over failed: %r", task.exception())

    async def quiet(self, service: str, pod: int) -> None:
        """Wait until no link that is on its way to a pod is unknown there."""
        while self._coming[service, pod]:  # noqa: ASYNC110 - it lasts for one answer of a pod
            await asyncio.sleep(_QUIET_LOOK_S)

    # One way.

    async def carry(
        self,
        service: str,
        links: Mapping[str, Link],
        target: PodRecord,
        within_s: float,
        *,
        persistent: bool | None = None,
    ) -> AsyncIterator[dict[str, Answer]]:
        """Give uids that their owner has given up to a pod, with their states.

        Yields, as that is known of some, each one's link, which is another's if somebody was
        faster; or an error: with `StateNotMovedError` nothing has changed, and it is to be tried
        again or given back. What stood in the way of a link is settled later.
        """
        with self._as_load(service, target, len(links)):
            async for some in self._fetched(service, links, target, within_s):
                ready = {taken.uid: links[taken.uid] for taken in some if not taken.problem}
                answers = await self._switch(service, ready, target, persistent)
                for taken in some:
                    if taken.problem:
                        held = links[taken.uid]
                        answers[taken.uid] = self._problem(service, held, target, taken)
                yield answers

    @contextlib.contextmanager
    def _as_load(self, service: str, target: PodRecord, count: int) -> Iterator[None]:
        """Have uids on their way to a pod counted as its load."""
        self._membership.loads.propose(service, target, count)
        try:
            yield
        finally:
            self._membership.loads.settle(service, target, count)

    async def _fetched(
        self, service: str, links: Mapping[str, Link], target: PodRecord, within_s: float
    ) -> AsyncIterator[list[Taken]]:
        """Yield what became of each state at its target, as that tells."""
        owner = self._owner(service, next(iter(links.values())))
        if owner is None or not self._lives(service, target):
            ended = "its pod" if owner is None else f"pod {target.pod}"
            yield [Taken(0, uid, f"{ended} has ended") for uid in links]
            return
        deadline, waiting = Deadline.after(within_s), set(links)
        take = Take({uid: link.epoch for uid, link in links.items()}, owner.actor, within_s)
        with self._mailboxes.following(_address(service, target), take) as told:
            while waiting:
                try:
                    some: list[Taken] = await told.some(deadline.remaining())
                except NoAnswerError as error:
                    some = [Taken(0, uid, f"pod {target.pod}: {error}") for uid in waiting]
                told_once = {taken.uid: taken for taken in some if taken.uid in waiting}
                some = list(told_once.values())
                waiting -= {taken.uid for taken in some}
                yield some

    def _lives(self, service: str, target: PodRecord) -> bool:
        """True unless a pod that was chosen has ended since: it would never answer."""
        there = self._membership.table.get(service, target.pod)
        is_it = there is not None and there.incarnation == target.incarnation
        return is_it and there is not None and there.available

    def _owner(self, service: str, link: Link) -> PodRecord | None:
        record = self._membership.table.get(service, link.pod)
        is_it = record is not None and record.incarnation == link.incarnation
        return record if is_it else None

    async def _switch(
        self,
        service: str,
        links: Mapping[str, Link],
        target: PodRecord,
        persistent: bool | None,  # noqa: FBT001
    ) -> dict[str, Answer]:
        """Change the links of uids whose states have arrived, and have all told."""
        if not links:
            return {}
        if not self._lives(service, target):
            gone = Taken(0, "", f"pod {target.pod} takes no uids any more")
            return {uid: self._problem(service, it, target, gone) for uid, it in links.items()}
        self._coming[service, target.pod] += 1
        try:
            answers = await self._links.hand_over(service, links, target, persistent=persistent)
        except BaseException:
            self._coming[service, target.pod] -= 1
            raise
        self.go_on(self._tell(service, links, answers, target))
        ended = Taken(0, "", "its link has ended")
        return {
            uid: self._problem(service, links[uid], target, ended) if answer is None else answer
            for uid, answer in answers.items()
        }

    async def _tell(
        self,
        service: str,
        links: Mapping[str, Link],
        answers: Mapping[str, Answer | None],
        target: PodRecord,
    ) -> None:
        """Tell the target what is its own now, and the owner, after that, what it may drop."""
        moved = {
            uid: (links[uid].epoch, answer.epoch)
            for uid, answer in answers.items()
            if isinstance(answer, Link) and is_at(answer, target)
        }
        self._stale(service, {uid: epoch for uid, (epoch, _) in moved.items()})
        try:
            if moved:
                there = _address(service, target)
                await self._mailboxes.ask(there, Settled(moved), _ANSWER_S)
        except NoAnswerError:
            return  # both ask by themselves
        finally:
            self._coming[service, target.pod] -= 1
        self.dropped(service, {uid: links[uid] for uid in moved})

    def dropped(self, service: str, links: Mapping[str, Link]) -> None:
        """Tell the owner of uids that it has given up that it may drop what it keeps of them."""
        if links:
            settled = {uid: (link.epoch, 0) for uid, link in links.items()}
            self._mailboxes.post(_owner(service, next(iter(links.values()))), Settled(settled))

    def _problem(
        self, service: str, held: Link, target: PodRecord, taken: Taken
    ) -> StateNotMovedError:
        return StateNotMovedError(
            reason=taken.problem,
            is_final=taken.is_final,
            target=target.pod,
            may_have_run=False,
            namespace=self._links.keys.namespace,
            service=service,
            pod=held.pod,
            uid=taken.uid or None,
        )

    # Back.

    async def give_back(self, service: str, links: Mapping[str, Link]) -> None:
        """Give uids that could not be moved back to their owner, and tell it so.

        What fails here is settled when the owner asks.
        """
        if links:
            address = _owner(service, next(iter(links.values())))
            back = {uid: (link.epoch, Fate.STAYS) for uid, link in links.items()}
            with contextlib.suppress(RouteError):
                self._mailboxes.post(address, Settled(await self.settle(address, back)))

    async def settle(self, address: Address, given: Mapping[str, Given]) -> dict[str, Settlement]:
        """Say whose uids are that a pod has given up, or has the states of, and nobody moves.

        A link that is not to go is given back to its owner under a new epoch. A uid whose owner's
        life has ended goes to the pod that has its state. One whose link is damaged stays as it is
        until that is mended, lest it be acquired again under its old epoch; so does one that its
        owner, another pod, has yet to settle.
        """
        service = address[0]
        settled: dict[str, Settlement] = {}
        back: dict[str, int] = {}
        for uid, link in (await self._present(service, given)).items():
            epoch, fate = given[uid]
            stays = fate is Fate.STAYS or (fate is Fate.UNUSED and _is_persistent(link))
            is_same = link is not None and link.epoch == epoch
            if is_same and link is not None and _owner(service, link) != address:
                settled |= await self._inherited(address, uid, link)
            elif is_same and link is not None and not stays:
                removed = await self._removed(service, uid, link, fate)
                if removed:
                    settled[uid] = (epoch, 0)
                elif removed is False and fate is Fate.MAY_GO:
                    back[uid] = epoch
            elif is_same:
                back[uid] = epoch
            else:
                settled[uid] = (epoch, _present_epoch(address, epoch, link))
        for uid, link in (await self._links.regrant(service, back)).items() if back else ():
            settled[uid] = (back[uid], _present_epoch(address, back[uid], link))
        self._stale(service, {uid: epoch for uid, (epoch, _) in settled.items()})
        return settled

    async def _present(self, service: str, given: Mapping[str, Given]) -> dict[str, Link | None]:
        """Read links; none of those that are damaged, or away with their master.

        One that has ended may be about to be written back, as all are before anything is placed.
        """
        for is_last in (False, True):
            asked_at = now()
            outcomes = await self._links.read_many(service, list(given))
            found = {
                uid: outcome.link
                for uid, outcome in outcomes.items()
                if not isinstance(outcome, RouteError)
            }
            if is_last or None not in found.values():
                break
            await self._links.may_place()
        # A pod that is told that a uid is another's drops what it kept of it: should Redis lose the
        # link before that one has heard of it, nobody else would know.
        known = {uid: link for uid, link in found.items() if link is not None}
        self._links.cache.put_all(service, known, asked_at)
        return found

    async def _removed(self, service: str, uid: str, link: Link, fate: Fate) -> bool | None:
        """Say whether a link has gone; None: nobody knows yet."""
        try:
            return await self._links.remove(service, uid, link, 0, _WHY[fate])
        except RouteError:
            return None

    async def _inherited(self, address: Address, uid: str, link: Link) -> dict[str, Settlement]:
        """Give a uid of a pod whose life has ended to the one that has its state."""
        service, pod, _ = address
        if not self._membership.table.has_ended(service, link):
            return {}
        try:
            target = await self._membership.target(service, pod)
        except PodUnavailableError:
            return {uid: (link.epoch, 0)}
        if _address(service, target) != address:
            return {uid: (link.epoch, 0)}
        answer = (await self._links.hand_over(service, {uid: link}, target))[uid]
        if isinstance(answer, RouteError):
            return {}
        return {uid: (link.epoch, _present_epoch(address, link.epoch, answer))}


def _present_epoch(address: Address, epoch: int, link: Link | None) -> int:
    """Return under which epoch a pod has a uid with the state of another; 0 if it has not."""
    if link is None or _owner(address[0], link) != address or link.replaced != epoch:
        return 0
    return link.epoch


def _owner(service: str, link: Link) -> Address:
    return service, link.pod, link.incarnation


def _address(service: str, pod: PodRecord) -> Address:
    return service, pod.pod, pod.incarnation


def _is_persistent(link: Link | None) -> bool:
    return link is not None and link.persistent


def is_at(link: Link | None, target: PodRecord) -> bool:
    """True if a link is that of this very life of a pod."""
    here = (target.pod, target.incarnation)
    return link is not None and (link.pod, link.incarnation) == here
