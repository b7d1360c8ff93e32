"""Links whose pod is alive change by way of their owner: set, stolen, removed, handed over.

The owner refuses the uid from then on, lets its calls end and runs `on_release`; only then is
the link changed, and only if it is still the one that its owner gave up. Where there is a state,
the new owner has it before that (`carrier`). An owner that does not answer keeps its uids until its
life has ended. What an owner has given up, and nobody then took, is given back to it under a new
epoch (`settle`): it never serves again under the old one, so no change that is late can meet it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Mapping

from ray_route.clock import Deadline
from ray_route.errors import PodUnavailableError, RouteError, StateNotMovedError
from ray_route.model import Link, PodRecord
from ray_route.protocol.commands import Address, Cancel, EndAt, Given, Kinds, Release, Settlement
from ray_route.router.carrier import Carrier, is_at
from ray_route.router.directory import Directory
from ray_route.router.hand_over import Damages, HandOver, Note, damaged_of
from ray_route.router.in_move import InMove
from ray_route.router.link_table import LinkTable
from ray_route.router.mailbox import Mailboxes, NoAnswerError
from ray_route.router.membership import Membership
from ray_route.router.shifting import Shifting, Targets

logger = logging.getLogger(__name__)

_ANSWER_S = 5.0
# Of the time that a caller gives, for the owner's calls to end; the rest is for its answer.
_FOR_CALLS = 0.7
# A caller whose uid is being moved waits so long with each question where it is.
_STILL_S = 1.0

Stale = Callable[[str, "dict[str, int]"], None]


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
        self._in_move = InMove()
        self._carrier = Carrier(membership, links, mailboxes, stale)

    # One uid.

    async def set(
        self, service: str, uid: str, pod: int, *, persistent: bool | None, timeout_s: float
    ) -> Link:
        """Link a uid to a pod, by way of whoever holds it; `persistent=None` keeps its kind."""
        deadline = Deadline.after(timeout_s)
        target = await self._membership.target(service, pod)
        async with self._in_move.turn(service, uid, deadline):
            while True:
                held = await self._links.read(service, uid)
                link = await self._give(service, uid, held, target, persistent, deadline)
                if is_at(link, target):
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
        async with self._in_move.turn(service, uid, deadline):
            held = await self._links.read(service, uid)
            taken = held is not None and not is_at(held, target)
            if held and taken and not steal and not self._membership.table.has_ended(service, held):
                return False, held
            link = await self._give(service, uid, held, target, persistent, deadline)
            return is_at(link, target), link

    async def remove(
        self, service: str, uid: str, pod: int | None, *, after_s: float, timeout_s: float
    ) -> bool:
        """Remove a uid's link, now or later, if `pod` (None: any) holds it; say whether it did.

        Later, its owner gives it up when that is due, and then the link goes. One that is moved
        meanwhile, by a drain, is removed where it has gone.
        """
        deadline = Deadline.after(timeout_s)
        async with self._in_move.turn(service, uid, deadline):
            while held := await self._links.read(service, uid):
                if pod not in (None, held.pod):
                    return False
                if await self._removed(service, uid, held, after_s, deadline):
                    return True
                deadline.check(f"uid {uid!r} of {service!r} to stand still")
            return False

    async def _removed(
        self, service: str, uid: str, held: Link, after_s: float, deadline: Deadline
    ) -> bool:
        """Remove exactly that link, by way of its living owner; say whether it still held."""
        if after_s == 0:
            await self._release(service, uid, held, deadline)
        elif await self._end_at(service, uid, held, after_s):
            after_s += self._grace_s
        removed = await self._links.remove(service, uid, held, after_s)
        if removed and after_s == 0:  # else its owner asks: it may have it back
            self._carrier.dropped(service, {uid: held})
        self._stale(service, {uid: held.epoch})
        return removed

    async def _give(
        self,
        service: str,
        uid: str,
        held: Link | None,
        target: PodRecord,
        persistent: bool | None,  # noqa: FBT001 - one of many facts
        deadline: Deadline,
    ) -> Link:
        """Set a link if it still is what was read, having its living owner give it up first."""
        if held is not None and not is_at(held, target):
            if await self._release(service, uid, held, deadline):
                return await self._carry(service, uid, held, target, persistent, deadline)
        elif held is not None:
            await self._end_at(service, uid, held, math.inf, temporary=persistent is False)
        link = await self._links.set(service, uid, target, held, persistent=persistent)
        if held is not None and link.epoch != held.epoch:
            self._stale(service, {uid: link.epoch - 1})
        elif held is not None:
            kinds = Kinds({uid: (link.epoch, link.persistent)})
            self._mailboxes.post((service, link.pod, link.incarnation), kinds)
        return link

    async def _carry(
        self,
        service: str,
        uid: str,
        held: Link,
        target: PodRecord,
        persistent: bool | None,  # noqa: FBT001 - one of many facts
        deadline: Deadline,
    ) -> Link:
        """Move a uid that its owner has given up with its state; give it back if that fails.

        It goes on if its caller does not: the state may have been taken by then.
        """
        within_s = deadline.remaining()

        async def work() -> Link:
            links, answer = {uid: held}, None
            with self._in_move.marked([(service, uid)]):
                async for some in self._carrier.carry(
                    service, links, target, within_s, persistent=persistent
                ):
                    answer = some[uid]
                assert answer is not None
                if isinstance(answer, StateNotMovedError):
                    await self._carrier.give_back(service, links)
            if isinstance(answer, RouteError):
                raise answer
            return answer

        return await asyncio.shield(self._carrier.go_on(work()))

    async def _release(self, service: str, uid: str, link: Link, deadline: Deadline) -> bool:
        """Have a uid's living owner give it up; say, when it has, whether it keeps a state of it.

        Raises `PodUnavailableError` if it kept it, or has not told in time.
        """
        if self._membership.table.has_ended(service, link):
            return False
        address = (service, link.pod, link.incarnation)
        patience_s, replaced = deadline.remaining() * _FOR_CALLS, {uid: link.replaced}
        asked = Release({uid: link.epoch}, patience_s, closes=True, replaced=replaced)
        with self._mailboxes.following(address, asked) as outcomes:
            try:
                outcome, *_ = await outcomes.some(deadline.remaining())
            except NoAnswerError as error:
                if self._membership.table.has_ended(service, link):
                    return False
                self._mailboxes.post(address, Cancel(outcomes.number))
                why = f"{error}; if its on_release runs, it is served there again afterwards"
                raise self._kept(service, uid, link, why) from error
        if not outcome.given:
            raise self._kept(service, uid, link, "its calls did not end in time")
        return bool(outcome.has_state)

    def _kept(self, service: str, uid: str, link: Link, why: str) -> PodUnavailableError:
        return self._membership.unavailable(service, link.pod, f"it kept the uid: {why}", uid)

    async def _end_at(
        self, service: str, uid: str, held: Link, after_s: float, *, temporary: bool = False
    ) -> bool:
        """Have the living owner give a uid up at a moment; False if it has none.

        Raises `PodUnavailableError` if it does not answer, or is giving it up just now.
        """
        if self._membership.table.has_ended(service, held):
            return False
        command = EndAt({uid: held.epoch}, after_s, temporary, {uid: held.replaced})
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

    async def shift(
        self, service: str, targets: Targets, *, patience_s: float, timeout_s: float
    ) -> dict[str, str]:
        """Move uids while they have no call; nobody's call is refused for that. See `Shifting`."""
        parts = (self._membership, self._links, self._mailboxes, self._carrier)
        shifting = Shifting(*parts, self._in_move, self._stale, service, targets)
        return await shifting.run(patience_s, timeout_s)

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

        `note` is told, again and again, what has become of some, and how many are left; what it
        raises ends the hand-over, as the end of the pod's life (`NoAnswerError`) and what placement
        raises do: uids whose hook has not begun are then kept, and those that nobody has taken are
        given back.
        """
        parts = (self._directory, self._mailboxes, self._carrier, self._in_move, self._stale)
        hand_over = HandOver(*parts, service, links, note)
        return await hand_over.run(patience_s, closes=closes)

    async def damaged(self, service: str, uids: Iterable[str]) -> Damages:
        """Return the uids whose links are damaged: who owns them can't be read or written."""
        return damaged_of(await self._links.read_many(service, list(uids)))

    async def quiet(self, service: str, pod: int) -> None:
        """Wait until a pod knows of all that was moved to it."""
        await self._carrier.quiet(service, pod)

    async def stand_still(self, service: str, wanted: Mapping[str, int]) -> None:
        """Wait a moment for moves of uids whose callers have just been refused.

        Whoever is told of the owner that gives a uid up just now only asks again.
        """
        refused = (uid for uid, min_epoch in wanted.items() if min_epoch)
        await self._in_move.stand_still(service, refused, _STILL_S)

    async def settle(self, address: Address, given: Mapping[str, Given]) -> dict[str, Settlement]:
        """Do what `Carrier.settle` does, for uids that nobody is moving."""
        free = {uid: it for uid, it in given.items() if (address[0], uid) not in self._in_move}
        return await self._carrier.settle(address, free) if free else {}
