"""Links whose pod is alive change by way of their owner: set, stolen, removed, handed over.

The owner refuses the uid from then on, lets its calls end and runs `on_release`; only then is
the link changed, and only if it is still the one that its owner gave up. An owner that does not
answer keeps its uids until its life has ended. What an owner has given up, and nobody then took,
is given back to it under a new epoch (`settle`): it never serves again under the old one, so no
change that is late can meet it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from ray_route.clock import Deadline
from ray_route.errors import DamagedKeyError, PodUnavailableError, RouteError
from ray_route.model import Link, PodRecord
from ray_route.protocol.commands import Address, Cancel, EndAt, Release
from ray_route.router.directory import Directory
from ray_route.router.link_table import LinkTable
from ray_route.router.mailbox import Mailboxes, NoAnswerError, Outcomes
from ray_route.router.membership import Membership

logger = logging.getLogger(__name__)

_ANSWER_S = 5.0
# Of the time that a caller gives, for the owner's calls to end; the rest is for its answer.
_FOR_CALLS = 0.7
_LOOK_S = 0.2

Stale = Callable[[str, "dict[str, int]"], None]
Damages = dict[str, DamagedKeyError]
Note = Callable[[int, int, Damages], None]


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Moves:
    """Everything that takes a link away from a living pod. Belongs to one event loop.

    `stale` is told which links, up to which epoch, no cache may serve any more. A removal that is
    scheduled leaves the link in Redis for `grace_s` longer, for its owner to run `on_release`.
    """

    def __init__(
        self,
        membership: Membership,
        links: LinkTable,
        directory: Directory,
        mailboxes: Mailboxes,
        stale: Stale,
        grace_s: float,
    ) -> None:
        self._membership = membership
        self._links = links
        self._directory = directory
        self._mailboxes = mailboxes
        self._stale = stale
        self._grace_s = grace_s
        self._turns: dict[tuple[str, str], _Turn] = {}
        self._moving: Counter[tuple[str, str]] = Counter()

    # One uid.

    async def set(
        self, service: str, uid: str, pod: int, *, persistent: bool | None, timeout_s: float
    ) -> Link:
        """Link a uid to a pod, by way of whoever holds it; `persistent=None` keeps its kind."""
        deadline = Deadline.after(timeout_s)
        target = await self._membership.target(service, pod)
        async with self._turn(service, uid, deadline):
            while True:
                held = await self._links.read(service, uid)
                kind = persistent
                if kind is None:
                    kind = held is not None and held.persistent
                link = await self._give(service, uid, held, target, kind, deadline)
                if _is_at(link, target):
                    return link
                deadline.check(f"uid {uid!r} of {service!r} to stand still")

    async def try_set(
        self,
        service: str,
        uid: str,
        pod: int,
        *,
        persistent: bool,
        steal: bool,
        timeout_s: float,
    ) -> tuple[bool, Link]:
        """Link a uid to a pod unless another living pod holds it; `steal` takes it from that."""
        deadline = Deadline.after(timeout_s)
        target = await self._membership.target(service, pod)
        async with self._turn(service, uid, deadline):
            held = await self._links.read(service, uid)
            taken = held is not None and not _is_at(held, target)
            if held and taken and not steal and not self._membership.table.has_ended(service, held):
                return False, held
            link = await self._give(service, uid, held, target, persistent, deadline)
            return _is_at(link, target), link

    async def remove(
        self, service: str, uid: str, pod: int | None, *, after_s: float, timeout_s: float
    ) -> bool:
        """Remove a uid's link, now or later, if `pod` (None: any) holds it; say whether it did.

        Later, its owner gives it up when that is due, and then the link goes.
        """
        deadline = Deadline.after(timeout_s)
        async with self._turn(service, uid, deadline):
            held = await self._links.read(service, uid)
            if held is None or pod not in (None, held.pod):
                return False
            if after_s == 0:
                await self._release(service, uid, held, deadline)
            elif await self._end_at(service, uid, held, after_s):
                after_s += self._grace_s
            removed = await self._links.remove(service, uid, held, after_s)
            self._stale(service, {uid: held.epoch})
            return removed

    async def _give(
        self,
        service: str,
        uid: str,
        held: Link | None,
        target: PodRecord,
        persistent: bool,  # noqa: FBT001 - one of many facts
        deadline: Deadline,
    ) -> Link:
        """Set a link if it still is what was read, having its living owner give it up first."""
        if held is not None and not _is_at(held, target):
            await self._release(service, uid, held, deadline)
        elif held is not None:
            await self._end_at(service, uid, held, math.inf)
        link = await self._links.set(service, uid, target, held, persistent=persistent)
        if held is not None and link.epoch != held.epoch:
            self._stale(service, {uid: link.epoch - 1})
        return link

    async def _release(self, service: str, uid: str, link: Link, deadline: Deadline) -> None:
        """Have a uid's living owner give it up; return when it has.

        Raises `PodUnavailableError` if it kept it, or has not told in time.
        """
        if self._membership.table.has_ended(service, link):
            return
        patience_s = deadline.remaining() * _FOR_CALLS
        address = (service, link.pod, link.incarnation)
        asked = Release({uid: link.epoch}, patience_s, closes=True)
        with self._mailboxes.release(address, asked) as outcomes:
            try:
                (outcome,) = await outcomes.some(deadline.remaining())
            except NoAnswerError as error:
                if self._membership.table.has_ended(service, link):
                    return
                self._mailboxes.post(address, Cancel(outcomes.number))
                why = f"{error}; if its on_release runs, it is served there again afterwards"
                raise self._kept(service, uid, link, why) from error
        if not outcome.given:
            raise self._kept(service, uid, link, "its calls did not end in time")

    def _kept(self, service: str, uid: str, link: Link, why: str) -> PodUnavailableError:
        return self._membership.unavailable(service, link.pod, f"it kept the uid: {why}", uid)

    async def _end_at(self, service: str, uid: str, held: Link, after_s: float) -> bool:
        """Have the living owner give a uid up at a moment; False if it has none.

        Raises `PodUnavailableError` if it does not answer, or is giving it up just now.
        """
        if self._membership.table.has_ended(service, held):
            return False
        command = EndAt({uid: held.epoch}, after_s)
        try:
            ending = await self._mailboxes.ask(
                (service, held.pod, held.incarnation), command, _ANSWER_S
            )
        except NoAnswerError as error:
            if self._membership.table.has_ended(service, held):
                return False
            raise self._kept(service, uid, held, str(error)) from error
        if ending:
            raise self._membership.unavailable(
                service, held.pod, "it is giving the uid up just now: try again", uid
            )
        return True

    # Many uids.

    async def hand_over(
        self,
        service: str,
        links: Mapping[str, Link],
        patience_s: float,
        *,
        closes: bool,
        note: Note,
    ) -> list[str]:
        """Move uids of one living pod to others, each as it is given up; return those kept.

        `note` is told, again and again, how many have just moved, how many are left, and whose
        links turned out to be damaged; what it raises ends the hand-over, as the end of the pod's
        life (`NoAnswerError`) and what placement raises do: uids whose hook has not begun are then
        kept, and the others are given back.
        """
        some = next(iter(links.values()))
        address = (service, some.pod, some.incarnation)
        waiting = {uid: link.epoch for uid, link in links.items()}
        kept: list[str] = []
        release = Release(dict(waiting), patience_s, closes)
        with self._mailboxes.release(address, release) as outcomes:
            try:
                while waiting:
                    given = {uid: links[uid] for uid in await _given(outcomes, waiting, kept)}
                    moved, damaged = await self._give_away(service, given)
                    note(moved, len(waiting) + len(kept), damaged)
            except BaseException:  # a task that is cancelled, too: whatever ends it
                self._mailboxes.post(address, Cancel(outcomes.number))
                raise
        return kept

    async def _give_away(self, service: str, links: dict[str, Link]) -> tuple[int, Damages]:
        """Give uids that their owner has given up to others; return how many moved.

        And those whose links are damaged, which hold up no other.
        """
        if not links:
            return 0, {}
        with self._in_move((service, uid) for uid in links):
            answers = await self._directory.give_away(service, links, None)
        damaged = _damaged(answers)
        errors = [
            answer
            for uid, answer in answers.items()
            if isinstance(answer, RouteError) and uid not in damaged
        ]
        moved = {
            uid: link.epoch
            for uid, link in links.items()
            if isinstance(answer := answers[uid], Link) and answer.epoch != link.epoch
        }
        self._stale(service, moved)
        if errors:
            raise errors[0]
        return len(moved), damaged

    async def damaged(self, service: str, uids: Iterable[str]) -> Damages:
        """Return the uids whose links are damaged: who owns them can't be read or written."""
        return _damaged(await self._links.read_many(service, list(uids)))

    async def settle(
        self, address: Address, given: Mapping[str, tuple[int, bool]]
    ) -> dict[str, int]:
        """Deal with uids that their owner has given up, and that nobody is moving.

        `given` maps them to their epochs, and to whether the link is to go; else it is given back
        to its owner under a new epoch. Returns those that have been dealt with; one whose link is
        damaged stays given up until that is mended, lest it be acquired again under its old epoch.
        """
        service, pod, incarnation = address
        free = {uid: it for uid, it in given.items() if not self._moving[service, uid]}
        back = {uid: epoch for uid, (epoch, removes) in free.items() if not removes}
        damaged: set[str] = set()
        for uid, (epoch, removes) in free.items():
            if removes:
                link = Link(pod, incarnation, epoch, persistent=False, lease_s=0)
                try:
                    await self._links.remove(service, uid, link, 0)
                except DamagedKeyError:
                    damaged.add(uid)
        if back:
            damaged.update(await self._links.regrant(service, back))
        settled = {uid: epoch for uid, (epoch, _) in free.items() if uid not in damaged}
        self._stale(service, settled)
        return settled

    # Turns.

    @asynccontextmanager
    async def _turn(self, service: str, uid: str, deadline: Deadline) -> AsyncIterator[None]:
        """Let nobody else move the uid meanwhile."""
        key = (service, uid)
        turn = self._turns.setdefault(key, _Turn())
        turn.users += 1
        try:
            await asyncio.wait_for(turn.lock.acquire(), deadline.remaining())
            try:
                with self._in_move([key]):
                    yield
            finally:
                turn.lock.release()
        except asyncio.TimeoutError:
            deadline.check(f"other moves of uid {uid!r} of {service!r}")
            raise
        finally:
            turn.users -= 1
            if turn.users == 0:
                self._turns.pop(key, None)

    @contextmanager
    def _in_move(self, keys: Iterable[tuple[str, str]]) -> Iterator[None]:
        """Have `settle` leave uids alone meanwhile."""
        some = list(keys)
        self._moving.update(some)
        try:
            yield
        finally:
            self._moving.subtract(some)
            for key in some:
                if not self._moving[key]:
                    del self._moving[key]


async def _given(outcomes: Outcomes, waiting: dict[str, int], kept: list[str]) -> list[str]:
    """Return the uids given up next; none if that takes a while, as hooks may."""
    given: list[str] = []
    for outcome in await outcomes.some_or_none(_LOOK_S):
        if waiting.pop(outcome.uid, None) is not None:
            (given if outcome.given else kept).append(outcome.uid)
    return given


def _damaged(outcomes: Mapping[str, object]) -> Damages:
    return {uid: it for uid, it in outcomes.items() if isinstance(it, DamagedKeyError)}


def _is_at(link: Link, target: PodRecord) -> bool:
    return (link.pod, link.incarnation) == (target.pod, target.incarnation)
