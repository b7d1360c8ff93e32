"""Links whose pod is alive change by way of their owner: set, stolen, removed, handed over.

The owner refuses the uid from then on, lets its calls end and runs `on_release`; only then is
the link changed, and only if it is still the one that its owner gave up. An owner that does not
answer keeps its uids until its life has ended.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

from ray_route.clock import Deadline, now
from ray_route.errors import PodUnavailableError, RouteError, StoreUnavailableError
from ray_route.model import Link, PodRecord
from ray_route.protocol.commands import ACT_WITHIN_S, Cap, Release, Reopen
from ray_route.router.directory import Directory
from ray_route.router.link_table import LinkTable
from ray_route.router.mailbox import Mailboxes, NoAnswerError
from ray_route.router.membership import Membership

logger = logging.getLogger(__name__)

_ANSWER_S = 5.0
# Of the time that a caller gives, for the owner's calls to end; the rest is for its answer.
_FOR_CALLS = 0.7
_DOUBT_S = 1.0
_DOUBTS = 60

Stale = Callable[[str, "dict[str, int]"], None]


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


@dataclass(frozen=True, slots=True)
class Released:
    """Uids that one living pod has given up to one release; none where the pod is dead."""

    links: dict[str, Link]
    release: Release | None


class Moves:
    """Everything that takes a link away from a living pod. Belongs to one event loop.

    `stale` is told which links, up to which epoch, no cache may serve any more.
    """

    def __init__(
        self,
        membership: Membership,
        links: LinkTable,
        directory: Directory,
        mailboxes: Mailboxes,
        stale: Stale,
    ) -> None:
        self._membership = membership
        self._links = links
        self._directory = directory
        self._mailboxes = mailboxes
        self._stale = stale
        self._turns: dict[tuple[str, str], _Turn] = {}
        self._numbers = count(random.getrandbits(48))
        self._doubts: set[asyncio.Task[None]] = set()

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
        """Remove a uid's link, now or later, if `pod` (None: any) holds it; say whether it did."""
        deadline = Deadline.after(timeout_s)
        async with self._turn(service, uid, deadline):
            held = await self._links.read(service, uid)
            if held is None or pod not in (None, held.pod):
                return False
            if after_s > 0:
                await self._cap(service, uid, held, after_s)
                released = Released({}, None)
            else:
                released = await self._release(service, {uid: held}, deadline)
            try:
                removed = await self._links.remove(service, uid, held, after_s)
            except RouteError as error:
                self._undo(service, released, error)
                raise
            self._stale(service, {uid: held.epoch})
            return removed

    async def take_back(
        self, service: str, pod: int, incarnation: int, uids: Mapping[str, int]
    ) -> None:
        """Remove links that their owner has given up by itself, because nobody used them."""
        for uid, epoch in uids.items():
            link = Link(pod, incarnation, epoch, persistent=False, lease_s=0)
            if await self._links.remove(service, uid, link, 0):
                self._stale(service, {uid: epoch})

    async def hand_over(self, service: str, links: dict[str, Link], timeout_s: float) -> int:
        """Move uids of one living pod to others; return how many moved.

        Raises `PodUnavailableError` if their owner kept them all, and what placement raises.
        """
        released = await self._release(service, links, Deadline.after(timeout_s))
        answers = await self._directory.give_away(service, released.links, None)
        kept = {
            uid: link
            for uid, link in released.links.items()
            if isinstance(answers[uid], RouteError) or answers[uid].pod == link.pod
        }
        errors = [answer for answer in answers.values() if isinstance(answer, RouteError)]
        moved = {uid: link.epoch for uid, link in released.links.items() if uid not in kept}
        self._stale(service, moved)
        if kept:
            self._undo(service, Released(kept, released.release), errors[0] if errors else None)
        if errors:
            raise errors[0]
        return len(moved)

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
        released = Released({}, None)
        if held is not None and not _is_at(held, target):
            released = await self._release(service, {uid: held}, deadline)
        try:
            link = await self._links.set(service, uid, target, held, persistent=persistent)
        except RouteError as error:
            self._undo(service, released, error)
            raise
        if held is not None and link.epoch != held.epoch:
            self._stale(service, {uid: link.epoch - 1})
        return link

    async def _release(self, service: str, links: dict[str, Link], deadline: Deadline) -> Released:
        """Have the living owner of one pod's uids give them up; say which it did.

        Raises `PodUnavailableError` if it kept them all or did not answer.
        """
        some = next(iter(links.values()))
        if self._membership.table.has_ended(service, some):
            return Released(links, None)
        uids = {uid: link.epoch for uid, link in links.items()}
        release = Release(next(self._numbers), uids, deadline.remaining() * _FOR_CALLS)
        address = (service, some.pod, some.incarnation)
        asked_at = now()
        try:
            given_up: list[str] = await self._mailboxes.ask(address, release, deadline.remaining())
        except NoAnswerError as error:
            if self._membership.table.has_ended(service, some):
                return Released(links, None)
            self._reopen(service, Released(links, release))
            raise self._kept(service, links, str(error)) from error
        released = Released({uid: links[uid] for uid in given_up}, release)
        if now() - asked_at > ACT_WITHIN_S:  # this process was frozen: the pod may go on by now
            self._reopen(service, released)
            raise self._kept(service, links, "its answer came too late")
        if not given_up:
            raise self._kept(service, links, "its calls did not end in time")
        return released

    def _kept(self, service: str, links: dict[str, Link], why: str) -> PodUnavailableError:
        uid, link = next(iter(links.items()))
        return self._membership.unavailable(service, link.pod, f"it kept the uid: {why}", uid)

    def _undo(self, service: str, released: Released, error: RouteError | None) -> None:
        """Give uids back whose link was not changed, at once if that is certain."""
        if released.release is None or not released.links:
            return
        if not isinstance(error, StoreUnavailableError):
            self._reopen(service, released)
            return
        task = asyncio.get_running_loop().create_task(self._reopen_when_certain(service, released))
        self._doubts.add(task)
        task.add_done_callback(self._doubts.discard)

    async def _reopen_when_certain(self, service: str, released: Released) -> None:
        """Give uids back once Redis answers: a write without an answer may still be carried out.

        What a server had received before it stalled is carried out when it goes on, and so
        before the second of two answers a second apart.
        """
        unchanged: dict[str, Link] = {}
        for _ in range(_DOUBTS):
            await asyncio.sleep(_DOUBT_S)
            epochs = {uid: link.epoch for uid, link in released.links.items()}
            try:
                await self._links.not_held(service, epochs)
                await asyncio.sleep(_DOUBT_S)
                changed = await self._links.not_held(service, epochs)
            except RouteError:
                continue
            unchanged = {u: link for u, link in released.links.items() if u not in changed}
            break
        self._reopen(service, Released(unchanged, released.release))

    def _reopen(self, service: str, released: Released) -> None:
        """Let the owner serve uids again."""
        if released.release is None or not released.links:
            return
        some = next(iter(released.links.values()))
        epochs = {uid: link.epoch for uid, link in released.links.items()}
        address = (service, some.pod, some.incarnation)
        self._mailboxes.post(address, Reopen(released.release.number, epochs))

    async def _cap(self, service: str, uid: str, held: Link, lease_s: float) -> None:
        """Let the owner's own lease end with the link's."""
        if self._membership.table.has_ended(service, held):
            return
        command = Cap({uid: held.epoch}, lease_s)
        try:
            await self._mailboxes.ask((service, held.pod, held.incarnation), command, _ANSWER_S)
        except NoAnswerError as error:
            raise self._kept(service, {uid: held}, str(error)) from error

    @asynccontextmanager
    async def _turn(self, service: str, uid: str, deadline: Deadline) -> AsyncIterator[None]:
        """Let nobody else move the uid meanwhile."""
        key = (service, uid)
        turn = self._turns.setdefault(key, _Turn())
        turn.users += 1
        try:
            await asyncio.wait_for(turn.lock.acquire(), deadline.remaining())
            try:
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


def _is_at(link: Link, target: PodRecord) -> bool:
    return (link.pod, link.incarnation) == (target.pod, target.incarnation)
