"""Links as the router reads and writes them: what holds is kept, and why it was decided.

Below `directory`, which decides: here what was decided is written, for one uid or for many.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from ray_route.config import RouteConfig
from ray_route.errors import DamagedKeyError, RouteError, RouterUnavailableError
from ray_route.model import Link, PodRecord
from ray_route.protocol.commands import Refreshed
from ray_route.router.decisions import Decisions
from ray_route.router.link_notes import LinkNotes
from ray_route.router.link_runs import LinkRuns
from ray_route.router.membership import Membership
from ray_route.router.outcomes import Outcomes, linked, not_held, refreshed, written
from ray_route.router.placer import Proposal, owner_of
from ray_route.router.removals import Removals
from ray_route.router.shards import Outcome, Shards
from ray_route.runtime.metrics import meter
from ray_route.state.link_cache import LinkCache
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls, RememberedLink, Why, Writer
from ray_route.store.scripts import Call


class LinkTable:
    """The router's only way to links. Belongs to one event loop."""

    def __init__(
        self, config: RouteConfig, keys: Keys, membership: Membership, shards: Shards
    ) -> None:
        self.keys = keys
        # A cached link to a life that has ended is a miss.
        self.cache = LinkCache(config.router_cache_size, serving=membership.table.serving)
        self.superseded = shards.superseded
        self.decisions = Decisions()
        self.removals = Removals()
        self.meter = meter(keys.namespace)
        self._shards = shards
        self._calls = LinkCalls(keys, config)
        self._runs = LinkRuns(shards, membership.loads, self.cache)
        self._notes = LinkNotes(membership, self.decisions, self.removals, self.meter)
        self._lease_s = config.lease_s

    # One uid.

    async def read(self, service: str, uid: str) -> Link | None:
        """Return what Redis holds; raise what stands in the way."""
        return linked((await self.read_many(service, [uid]))[uid])

    async def set_if_absent(
        self, service: str, uid: str, target: PodRecord, *, persistent: bool
    ) -> Link:
        """Link a uid to a chosen pod unless it has a link; return the link that holds."""
        outcome = await self._runs.write_one(
            service,
            uid,
            lambda writer, shard, some: self._calls.set_if_absent(
                writer, shard, service, some, [owner_of(target)], persistent=persistent
            ),
        )
        if outcome.link is None:
            raise self._shards.problems.full()
        return self._notes.take_in(service, uid, outcome, "set if absent")

    async def set(
        self,
        service: str,
        uid: str,
        target: PodRecord,
        held: Link | None,
        *,
        persistent: bool | None,
    ) -> Link:
        """Link a uid to a pod if `held` is still its link, or has ended; return what holds then.

        A living owner must have given it up before. `persistent=None` keeps its kind.
        """
        expected = held.epoch if held else None
        outcome = await self._runs.write_one(
            service,
            uid,
            lambda writer, shard, some: self._calls.set(
                writer,
                shard,
                service,
                some,
                [owner_of(target)],
                [expected],
                persistent=persistent,
            ),
        )
        assert outcome.link is not None
        self._notes.left(service, held if outcome.written else None)
        return self._notes.take_in(service, uid, outcome, "set", held.pod if held else None)

    async def remove(
        self, service: str, uid: str, held: Link, after_s: float, why: Why = "wanted"
    ) -> bool:
        """Remove exactly that link, now or later; say whether it was there, and may go for that."""
        meant = f"{held.pod}:{held.incarnation}:{held.epoch}"
        outcome = await self._runs.write_one(
            service,
            uid,
            lambda writer, shard, some: self._calls.remove_if(
                writer, shard, service, some, [meant], after_s, why
            ),
            placing=False,
        )
        self.cache.drop(service, uid, held.epoch)
        self._notes.removed(service, uid, held, outcome, after_s)
        return outcome.written

    # Many uids.

    async def read_many(self, service: str, uids: Sequence[str], *, waits: bool = True) -> Outcomes:
        """Return what Redis holds of each uid; fills no cache.

        Of a lost shard that is known once it is recovered; unless it `waits`, `LostWritesError`
        says so at once. So it is with `relink`, and `place` never waits: a batch has uids of many
        who do not know of each other.
        """
        return await self._runs.in_force(self._shards.read(service, uids, waits=waits))

    async def place(self, service: str, proposal: Proposal) -> Outcomes:
        """Link each uid to the pod proposed for it, unless it has a link: that wins."""

        def build(writer: Writer, shard: int, some: list[str]) -> Call:
            owners = proposal.owners(some)
            return self._calls.set_if_absent(writer, shard, service, some, owners)

        outcomes = await self._runs.write_proposed(service, proposal, build, waits=False)
        outcomes = {uid: self._or_full(outcome) for uid, outcome in outcomes.items()}
        placed = {
            uid: outcome.link
            for uid, outcome in outcomes.items()
            if isinstance(outcome, Outcome) and outcome.written and outcome.link
        }
        if placed:
            self._notes.came(service, placed, "placed")
        return outcomes

    async def relink(
        self,
        service: str,
        proposal: Proposal,
        lost: Mapping[str, Link],
        reason: str,
        *,
        waits: bool = True,
    ) -> dict[str, Link | RouteError]:
        """Link each uid to the pod proposed for it, if its epoch is still that of `lost`."""

        def build(writer: Writer, shard: int, some: list[str]) -> Call:
            expected = [lost[uid].epoch for uid in some]
            owners = proposal.owners(some)
            return self._calls.relink(writer, shard, service, some, expected, owners)

        outcomes = await self._runs.write_proposed(service, proposal, build, waits=waits)
        for uid, outcome in outcomes.items():
            self._notes.left(service, lost[uid] if written(outcome) else None)
        return {
            uid: outcome
            if isinstance(outcome, RouteError)
            else self._notes.take_in(service, uid, outcome, reason, lost[uid].pod)
            for uid, outcome in outcomes.items()
        }

    async def hand_over(
        self,
        service: str,
        links: Mapping[str, Link],
        target: PodRecord,
        *,
        persistent: bool | None = None,
    ) -> dict[str, Link | RouteError | None]:
        """Link each uid to a pod if its link is still exactly that one; return what holds then."""
        name = owner_of(target)

        def build(writer: Writer, shard: int, some: list[str]) -> Call:
            epochs, owners = [links[uid].epoch for uid in some], [name] * len(some)
            how = (writer, shard, service, some, epochs, owners)
            return self._calls.hand_over(*how, persistent=persistent)

        outcomes = await self._runs.write(service, list(links), build, placing=True)
        answers: dict[str, Link | RouteError | None] = {}
        for uid, outcome in outcomes.items():
            self._notes.left(service, links[uid] if written(outcome) else None)
            answers[uid] = outcome if isinstance(outcome, RouteError) else outcome.link
            if isinstance(outcome, Outcome) and outcome.link is not None:
                self._notes.take_in(service, uid, outcome, "moved", links[uid].pod)
        return answers

    async def may_place(self) -> None:
        """Return when links that living pods remember are all there: placements wait for that."""
        await self._shards.may_place()

    async def regrant(self, service: str, uids: Mapping[str, int]) -> dict[str, Link | None]:
        """Give uids back to their owner, each under a new epoch if it still has this one.

        Returns the links that hold then; none of those that are damaged, or away with their master.
        """

        def build(writer: Writer, shard: int, some: list[str]) -> Call:
            return self._calls.regrant(writer, shard, service, some, [uids[uid] for uid in some])

        outcomes = await self._runs.write(service, list(uids), build, placing=False)
        links: dict[str, Link | None] = {}
        for uid, outcome in outcomes.items():
            if isinstance(outcome, RouteError):
                continue
            links[uid] = outcome.link
            if outcome.link is not None:
                self._notes.left(service, outcome.link if outcome.written else None)
                self._notes.take_in(service, uid, outcome, "given back")
        return links

    async def refresh(
        self, service: str, uids: Mapping[str, int], *, ending: bool = False
    ) -> Refreshed:
        """Lengthen the lives of links in use; say of which it did not.

        Nor does it of those whose removal is scheduled, unless they are `ending`: their pod knows
        of that, and gives them up when it is due, or when their calls have ended then.
        """

        def build(writer: Writer, shard: int, some: list[str]) -> Call:
            epochs = [uids[uid] for uid in some]
            return self._calls.refresh(writer, shard, service, some, epochs, ending=ending)

        outcomes = await self._runs.in_force(self._shards.run(list(uids), build))
        return refreshed(uids, outcomes, self._lease_s)

    async def not_held(self, service: str, uids: Mapping[str, int]) -> dict[str, int]:
        """Return those uids whose link in Redis is no longer the one of that epoch."""
        return not_held(uids, await self.read_many(service, list(uids)))

    # What a recovery writes back.

    async def readmit(self, service: str, links: Mapping[str, Link]) -> int:
        """Write back links that have run out, where the uid has none now; return how many.

        Raises what stands in the way of any. In a Cluster shards that are away are set aside.
        """

        def build(writer: Writer, shard: int, some: list[str]) -> Call:
            return self._calls.readmit(writer, shard, service, some, [links[uid] for uid in some])

        outcomes = await self._runs.write(service, list(links), build, placing=False)
        for uid, outcome in outcomes.items():
            if isinstance(outcome, Outcome | DamagedKeyError):
                continue
            if not self._shards.counters.set_aside_if_away(self.keys.shard(uid), outcome):
                raise outcome
        back = {uid: link for uid in links if (link := written(outcomes[uid]))}
        self.decisions.note(service, back, "brought back")
        return len(back)

    def memory(self, shards: Collection[int]) -> Iterator[tuple[str, str, RememberedLink]]:
        """Yield (service, uid, what is known) of every link remembered in some shards."""
        shard_of = self.keys.shard
        for service, uid, link in self.cache.links():
            if shard_of(uid) in shards:
                yield service, uid, RememberedLink(link)
        for service, uid, removal in self.removals.remembered():
            if shard_of(uid) in shards:
                yield service, uid, removal

    # What stands in the way.

    def _or_full(self, outcome: Outcome | RouteError) -> Outcome | RouteError:
        """Return an outcome, or the error of a uid that has no link because Redis is full."""
        if isinstance(outcome, RouteError) or outcome.link is not None:
            return outcome
        return self._shards.problems.full()

    def taken_over(self) -> RouterUnavailableError:
        """Make the error of a router that must not go on."""
        return self._shards.problems.taken_over()
