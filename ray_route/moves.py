"""Links whose pod is alive change by way of their owner: set, stolen, removed, drained.

The owner refuses the uid from then on, lets its calls end and runs `on_release`; only then is
the link changed. An owner that does not answer keeps its uids until its life has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from ray_route.census import Census
from ray_route.clock import now
from ray_route.directory import Directory
from ray_route.errors import PodUnavailableError, RouteError
from ray_route.mailbox import Address, Mailboxes, NoAnswerError
from ray_route.model import Link, PodRecord
from ray_route.orders import Cap, Release, Reopen

logger = logging.getLogger(__name__)

# A release is acted upon within this time or taken back (see `admission`).
_ACT_WITHIN_S = 60.0
_ANSWER_S = 5.0

_T = TypeVar("_T")

Stale = Callable[[str, "dict[str, int]"], None]


class Moves:
    """Everything that takes a link away from a living pod. Belongs to one event loop.

    `stale` is told which links, up to which epoch, no cache may serve any more.
    """

    def __init__(
        self, census: Census, directory: Directory, mailboxes: Mailboxes, stale: Stale
    ) -> None:
        self._census = census
        self._directory = directory
        self._mailboxes = mailboxes
        self._stale = stale
        self._alone: dict[tuple[str, str], asyncio.Lock] = {}

    async def set(
        self, service: str, uid: str, pod: int, *, persistent: bool | None, timeout_s: float
    ) -> Link:
        """Link a uid to a pod, by way of whoever holds it; `persistent=None` keeps its kind."""
        target = await self._census.target(service, pod)
        async with self._held(service, uid) as held:
            if persistent is None:
                persistent = held is not None and held.persistent
            if held is None or _is_at(held, target):
                return await self._directory.set(service, uid, target, persistent=persistent)
            await self.release(service, {uid: held}, timeout_s)

            async def change() -> Link:
                return await self._directory.set(service, uid, target, persistent=bool(persistent))

            return await self._change(service, uid, held, change)

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
        target = await self._census.target(service, pod)
        async with self._held(service, uid) as held:
            taken = held is not None and not _is_at(held, target) and self._lives(service, held)
            if held is not None and taken and not steal:
                return False, held

            async def change() -> Link:
                return await self._directory.try_set(
                    service, uid, target, held, persistent=persistent
                )

            if held is None or not taken:
                link = await change()
            else:
                await self.release(service, {uid: held}, timeout_s)
                link = await self._change(service, uid, held, change)
            return _is_at(link, target), link

    async def remove(
        self, service: str, uid: str, pod: int | None, *, after_s: float, timeout_s: float
    ) -> bool:
        """Remove a uid's link, now or later, if `pod` (None: any) holds it; say whether it did."""
        async with self._held(service, uid) as held:
            if held is None or pod not in (None, held.pod):
                return False

            async def change() -> bool:
                return await self._directory.remove(service, uid, held, after_s)

            if after_s > 0:
                await self._cap(service, uid, held, after_s)
                removed = await change()
                self._stale(service, {uid: held.epoch})
                return removed
            await self.release(service, {uid: held}, timeout_s)
            return await self._change(service, uid, held, change)

    async def hand_over(self, service: str, links: dict[str, Link]) -> int:
        """Move uids of one living pod to others; return how many moved.

        Raises `PodUnavailableError` if their owner kept them all, and what placement raises.
        """
        given_up = await self.release(service, links, _ANSWER_S)
        going = {uid: links[uid] for uid in given_up}
        answers = await self._directory.give_away(service, going, None)
        kept = {uid: going[uid] for uid, link in answers.items() if isinstance(link, RouteError)}
        self.reopen(service, kept)
        moved = {uid: going[uid].epoch for uid in going if uid not in kept}
        self._stale(service, moved)
        for error in answers.values():
            if isinstance(error, RouteError):
                raise error
        return len(moved)

    async def release(self, service: str, links: dict[str, Link], timeout_s: float) -> list[str]:
        """Have the living owner of one pod's uids give them up; return those given up.

        Raises `PodUnavailableError` if it kept them all or did not answer.
        """
        some = next(iter(links.values()))
        if not self._lives(service, some):
            return list(links)
        address = (service, some.pod, some.incarnation)
        uids = {uid: link.epoch for uid, link in links.items()}
        order = Release(uids, min(timeout_s, _ACT_WITHIN_S / 2))
        asked_at = now()
        try:
            given_up: list[str] = await self._mailboxes.ask(
                address, order, order.timeout_s + _ANSWER_S
            )
        except NoAnswerError as error:
            if self._census.table.has_ended(service, some):
                return list(links)
            self.reopen(service, links)
            raise self._kept(service, links, str(error)) from error
        if not given_up:
            raise self._kept(service, links, "its calls did not end in time")
        if now() - asked_at > _ACT_WITHIN_S:  # this process was frozen: the pod may go on by now
            self.reopen(service, links)
            raise self._kept(service, links, "its answer came too late")
        return given_up

    def _kept(self, service: str, links: dict[str, Link], why: str) -> PodUnavailableError:
        uid, link = next(iter(links.items()))
        return self._census.unavailable(service, link.pod, f"it kept the uid: {why}", uid)

    async def _change(
        self, service: str, uid: str, held: Link, change: Callable[[], Awaitable[_T]]
    ) -> _T:
        """Change a link that its owner has given up; give it back if that fails."""
        try:
            changed = await change()
        except RouteError:
            self.reopen(service, {uid: held})
            raise
        self._stale(service, {uid: held.epoch})
        return changed

    def reopen(self, service: str, links: dict[str, Link]) -> None:
        """Let the owner of one pod's uids serve them again."""
        for uid, link in links.items():
            address: Address = (service, link.pod, link.incarnation)
            self._mailboxes.post(address, Reopen({uid: link.epoch}))

    async def _cap(self, service: str, uid: str, held: Link, lease_s: float) -> None:
        """Let the owner's own lease end with the link's."""
        if not self._lives(service, held):
            return
        order = Cap({uid: held.epoch}, lease_s)
        try:
            await self._mailboxes.ask((service, held.pod, held.incarnation), order, _ANSWER_S)
        except NoAnswerError as error:
            raise self._kept(service, {uid: held}, str(error)) from error

    def _lives(self, service: str, link: Link) -> bool:
        return self._census.table.routable(service, link)

    @asynccontextmanager
    async def _held(self, service: str, uid: str) -> AsyncIterator[Link | None]:
        """Let nobody else move the uid meanwhile; yield the link that Redis holds."""
        key = (service, uid)
        lock = self._alone.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                yield await self._directory.read(service, uid)
        finally:
            if not lock.locked():
                self._alone.pop(key, None)


def _is_at(link: Link, target: PodRecord) -> bool:
    return (link.pod, link.incarnation) == (target.pod, target.incarnation)
