"""Uids that have no call go to pods that are named for each of them, so that loads are even.

All of one pod are released together, and go on as they are given up, like those of a drain. Nobody
waits for who moves one of them by a call of his own: that one is his.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ray_route.errors import PodUnavailableError, RouteError
from ray_route.model import Link, PodRecord
from ray_route.router.carrier import Answer, Carrier
from ray_route.router.hand_over import HandOver, Stale, Step
from ray_route.router.in_move import InMove
from ray_route.router.link_table import LinkTable
from ray_route.router.mailbox import Mailboxes, NoAnswerError
from ray_route.router.membership import Membership
from ray_route.router.outcomes import linked
from ray_route.router.placer import Proposal, owner_of
from ray_route.router.shards import Outcome

_ANOTHER = "its link is another now"
_BUSY = "it kept the uid: its calls did not end in time"

Targets = Mapping[str, tuple[int, int]]
"""Of each uid the epoch that is to end, and the pod that it is to go to."""
Told = dict[str, str]
"""Why each uid stays where it is; empty of one that has moved."""


@dataclass(frozen=True, slots=True)
class Shifting:
    """Moves some uids of one service. Belongs to one event loop."""

    membership: Membership
    links: LinkTable
    mailboxes: Mailboxes
    carrier: Carrier
    in_move: InMove
    stale: Stale
    service: str
    targets: Targets

    async def run(self, patience_s: float, timeout_s: float) -> Told:
        """Return why each stays. One that has a call stays unless that ends in `patience_s`."""
        told: Told = {}
        by_pod: defaultdict[tuple[int, int], dict[str, Link]] = defaultdict(dict)
        outcomes = await self.links.read_many(self.service, list(self.targets))
        for uid in self.targets:  # in the order of the plan
            try:
                link = await self._to_move(uid, linked(outcomes[uid]))
            except RouteError as error:
                told[uid] = str(error)
            else:
                by_pod[link.pod, link.incarnation][uid] = link
        works = [self._of_one_pod(links, patience_s, timeout_s) for links in by_pod.values()]
        for some in await asyncio.gather(*works):
            told |= some
        # Also of what is unknown so far: one whose answer was lost is asked for again.
        return await self._without_those_that_moved(told)

    async def _to_move(self, uid: str, held: Link | None) -> Link:
        """Return the link that is to change; raise why it can't."""
        epoch, pod = self.targets[uid]
        await self.membership.target(self.service, pod)
        if held is None or held.epoch != epoch or held.pod == pod:
            raise self._stays(pod, _ANOTHER, uid)
        if held.persistent:  # the plan's pod may not have known it yet
            raise self._stays(held.pod, "its link is persistent", uid)
        if self.membership.table.has_ended(self.service, held):
            raise self._stays(held.pod, "its life has ended", uid)
        if self.in_move.has_turn(self.service, uid):
            raise self._stays(held.pod, "somebody else moves the uid", uid)
        return held

    def _stays(self, pod: int, why: str, uid: str | None = None) -> RouteError:
        return self.membership.unavailable(self.service, pod, why, uid)

    async def _of_one_pod(
        self, links: dict[str, Link], patience_s: float, timeout_s: float
    ) -> Told:
        why: dict[str, RouteError] = {}

        def note(step: Step) -> None:
            why.update({**step.damaged, **step.back})

        parts = (self.mailboxes, self.carrier, self.in_move, self.stale)
        hand_over = HandOver(self, *parts, self.service, links, note, attempts=1)
        kept: list[str] = []
        pod, left = next(iter(links.values())).pod, _ANOTHER
        try:
            kept = await asyncio.wait_for(hand_over.run(patience_s, closes=False), timeout_s)
        except asyncio.TimeoutError:
            left = f"it kept the uid: not all of some were given up within {timeout_s:g} s"
        except NoAnswerError as error:
            left = str(error)
        except RouteError as error:  # it is that of some, and ends the hand-over of all
            left = error.reason if isinstance(error, PodUnavailableError) else str(error)
        why |= {uid: self._stays(pod, _BUSY, uid) for uid in kept}
        return {uid: str(why.get(uid) or self._stays(pod, left, uid)) for uid in links}

    async def _without_those_that_moved(self, told: Told) -> Told:
        """Say of those that have moved by now that there is nothing to say."""
        outcomes = await self.links.read_many(self.service, list(told))
        return {
            uid: "" if self._has_moved(uid, outcomes[uid]) else why for uid, why in told.items()
        }

    def _has_moved(self, uid: str, outcome: object) -> bool:
        epoch, pod = self.targets[uid]
        link = outcome.link if isinstance(outcome, Outcome) else None
        return link is not None and (link.pod, link.replaced) == (pod, epoch)

    # Where uids go that their pod has given up, as a hand-over asks.

    def propose(self, service: str, uids: Iterable[str]) -> Proposal:
        """Say to which pod each goes; raise `PodUnavailableError` if one takes none any more."""
        chosen = {uid: self.targets[uid][1] for uid in uids}
        pods = {pod: self._record(service, pod) for pod in set(chosen.values())}
        return Proposal(pods, {pod: owner_of(record) for pod, record in pods.items()}, chosen)

    def _record(self, service: str, pod: int) -> PodRecord:
        record = self.membership.table.get(service, pod)
        if record is None or not record.available:
            raise self._stays(pod, "it takes no links any more")
        return record

    async def give_away(self, service: str, lost: Mapping[str, Link], _: None) -> dict[str, Answer]:
        """Link uids to their pods, if nobody was faster."""
        return dict(await self.links.relink(service, self.propose(service, lost), lost, "moved"))
