"""Membership: which pods there are, as the tables in Redis say, and who must hear of changes."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ray_route.clock import now
from ray_route.errors import (
    DamagedKeyError,
    InvalidInputError,
    PodUnavailableError,
    RouteError,
    RouterUnavailableError,
)
from ray_route.model import Life, Pod, PodRecord, RoutingState
from ray_route.protocol.commands import Address
from ray_route.router.shards import Shards
from ray_route.runtime.metrics import PODS, meter
from ray_route.state.load_book import LoadBook
from ray_route.state.pod_table import PodTable
from ray_route.store.connect import AsyncStore
from ray_route.store.damage import tell
from ray_route.store.keys import Keys
from ray_route.store.namespaces import look
from ray_route.store.pods import PodCalls, parse_table, service_names
from ray_route.store.scripts import Call, script_call

logger = logging.getLogger(__name__)

_STATES = [*(state.value for state in RoutingState), Life.GONE.value, Life.RESIGNED.value]

OnChange = Callable[[str, PodRecord], None]

_CALLS_PER_TRIP = 20


class Denials:
    """Lives whose end this router has sent to Redis, until it is known what came of that."""

    def __init__(self) -> None:
        self._upto: dict[Address, float] = {}

    def deny(self, address: Address, seq: int | None) -> None:
        """Note that the end of a life is sent, for a record of that number (None: any)."""
        upto = math.inf if seq is None else seq
        self._upto[address] = max(upto, self._upto.get(address, -math.inf))

    def __contains__(self, address: Address) -> bool:
        return address in self._upto

    def is_final(self, address: Address) -> bool:
        """True if the end holds for any record of that life: its process has ended."""
        return self._upto.get(address) == math.inf

    def final(self) -> list[Address]:
        """Return the lives whose end is certain and may not be written yet."""
        return [address for address, upto in self._upto.items() if upto == math.inf]

    def take_in(self, service: str, pod: PodRecord) -> None:
        """Forget what a record settles: it has ended, or has moved on before the end reached it."""
        for address, upto in list(self._upto.items()):
            if address[:2] != (service, pod.pod) or address[2] > pod.incarnation:
                continue
            has_ended = pod.life is not Life.ALIVE or address[2] < pod.incarnation
            if has_ended or pod.seq > upto:
                del self._upto[address]


class Membership:
    """Reads the pod tables. `on_change` hears every change of a pod's routing, exactly once."""

    def __init__(self, store: AsyncStore, keys: Keys, on_change: OnChange, shards: Shards) -> None:
        self.table = PodTable()
        self.loads = LoadBook()
        self.denied = Denials()
        self._shards = shards
        self._gone_at: dict[tuple[str, int], float] = {}
        self._store = store
        self._keys = keys
        self._on_change = on_change
        self._calls = PodCalls(keys)
        self.meter = meter(keys.namespace)
        self.meter.gauge(PODS, self._by_state)

    def _by_state(self) -> Iterator[tuple[tuple[str, str], int]]:
        """Count pods by state; a state that has none is told too, or its gauge would stay."""
        for service in self.table.services():
            found = Counter(pod.describe() for pod in self.table.pods(service).copy().values())
            for state in _STATES:
                yield (service, state), found[state]

    async def refresh(self, service: str) -> None:
        """Read a service's pod table; raise `StoreUnavailableError`, or `DamagedKeyError`."""
        reply = await self._store.one(self._calls.table(service))
        self._take_in(service, parse_table(reply, self._keys.pods(service)))

    async def refresh_all(self) -> list[tuple[str, PodRecord]]:
        """Read the pod tables of all services; return every record just read.

        A table that is damaged as a whole is passed over: nothing is known of its pods then.
        """
        names = await self._services()
        replies = await self._store.run([self._calls.table(name) for name in names])
        read: list[tuple[str, PodRecord]] = []
        for name, reply in zip(names, replies, strict=True):
            if isinstance(reply, DamagedKeyError):
                tell(reply)
                continue
            if isinstance(reply, RouteError):
                raise reply
            records = parse_table(reply, self._keys.pods(name))
            self._take_in(name, records)
            read.extend((name, record) for record in records)
        return read

    async def _services(self) -> list[str]:
        """Read the names of the services; while that key is damaged, those known already.

        The pods' next renewals mend it.
        """
        try:
            return service_names(await self._store.one(self._calls.services()), self._keys.services)
        except DamagedKeyError as error:
            tell(error)
            return sorted(self.table.services())

    def _take_in(self, service: str, records: Iterable[PodRecord]) -> None:
        for record in records:
            self.denied.take_in(service, record)
            changed = self.table.update(service, record)
            if self.table.get(service, record.pod) is record:
                self.loads.report(service, record)
            if changed:
                self._gone_at.pop((service, record.pod), None)
                if record.life is Life.GONE:
                    self._gone_at[service, record.pod] = now()
                self._on_change(service, record)

    def gone_for_s(self, service: str, pod: int) -> float:
        """Seconds since a pod was seen to be gone; infinite if it is not, or was before us."""
        return now() - self._gone_at.get((service, pod), -math.inf)

    async def note_look(self, *, settled: bool) -> float | None:
        """Write that this router looks; return the seconds since one did last, None if none did.

        Only a `settled` look is found by the next.

        Raises `StoreUnavailableError` where Redis refuses it, as it refuses renewals then, and
        `RouterUnavailableError` if a younger router decides, or this one has not begun.
        """
        since_us = int((await self._decide(look(self._keys, self._router(), settled=settled)))[1])
        return since_us / 1e6 if since_us >= 0 else None

    async def declare_gone(self, service: str, pod: PodRecord, *, silent: bool) -> bool:
        """Write an incarnation's death before anyone acts on it; say whether it is dead now.

        The life is denied before, so that nobody vouches for it while the outcome is unknown.
        """
        call = self._calls.declare_gone(service, pod, self._router(), silent=silent)
        self.denied.deny((service, pod.pod, pod.incarnation), pod.seq if silent else None)
        verdict = await self._decide(call)
        await self.refresh(service)
        return bool(verdict in (b"ok", b"superseded"))

    async def set_state(self, service: str, pod: PodRecord, state: RoutingState) -> None:
        """Set a living pod's routing state; raise `PodUnavailableError` if its life has ended."""
        call = self._calls.set_state(service, pod, state, self._router())
        verdict = await self._decide(call)
        await self.refresh(service)
        if verdict != b"ok":
            raise self.unavailable(service, pod.pod, f"the directory says {verdict.decode()}")

    async def vouch(self, address: Address, seq: int) -> str:
        """Write that a life serves again; return "ok", "ended", "superseded" or "lost"."""
        verdict: bytes = await self._decide(self._calls.vouch(address, seq, self._router()))
        return verdict.decode()

    async def write_back(self, pods: Iterable[tuple[str, PodRecord]]) -> None:
        """Write back what Redis may have lost of some pods; tell that again which it had lost.

        Whoever began anew with the change stream has read the table as it was.
        """
        router, left = self._router(), list(pods)
        while left:
            some, left = left[:_CALLS_PER_TRIP], left[_CALLS_PER_TRIP:]
            calls = [self._calls.restore(service, pod, router) for service, pod in some]
            for (service, pod), reply in zip(some, await self._store.run(calls), strict=True):
                if isinstance(reply, DamagedKeyError):
                    tell(reply)
                    continue
                if isinstance(reply, RouteError):
                    raise reply
                if self._check(reply) == b"written":
                    self._on_change(service, pod)

    async def _decide(self, call: Call) -> Any:
        """Send what only the newest router may do; return the reply."""
        return self._check(await self._store.one(call))

    def _check(self, reply: Any) -> Any:
        if (reply[0] if isinstance(reply, list) else reply) == b"deposed":
            raise self._shards.deposed()
        return reply

    def _router(self) -> int:
        """Return this router's incarnation; raise `RouterUnavailableError` if it has none yet."""
        if not self._shards.incarnation:
            raise RouterUnavailableError(namespace=self._keys.namespace, reason="it is starting")
        return self._shards.incarnation

    async def target(self, service: str, pod: int) -> PodRecord:
        """Return a pod that new links may go to.

        Raises `InvalidInputError` for an unknown one, `PodUnavailableError` for a closed one.
        """
        record = self.table.get(service, pod)
        if record is None or not record.available:
            record = await self.known(service, pod)
        if not record.available:
            raise self.unavailable(service, pod, f"it takes no links: {record.describe()}")
        return record

    async def known(self, service: str, pod: int) -> PodRecord:
        """Return a pod's record, read anew; raise `InvalidInputError` for an unknown pod."""
        await self.refresh(service)
        record = self.table.get(service, pod)
        if record is None:
            known = sorted(self.table.pods(service))
            raise InvalidInputError(
                argument="pod",
                value=pod,
                reason=f"is unknown; service {service!r} has pods {known}",
                namespace=self._keys.namespace,
            )
        return record

    def unavailable(
        self, service: str, pod: int, reason: str, uid: str | None = None
    ) -> PodUnavailableError:
        """Make the error for a pod that can't do what was asked; the call did not run."""
        return PodUnavailableError(
            reason=reason,
            may_have_run=False,
            namespace=self._keys.namespace,
            service=service,
            pod=pod,
            uid=uid,
        )

    async def time_us(self) -> int:
        """Read Redis `TIME` in microseconds."""
        return int(await self._store.one(script_call("time", [self._keys.meta], [])))

    async def pods(self, service: str) -> dict[int, Pod]:
        """Read a service's pod table and return it as operators see it."""
        await self.refresh(service)
        time_us = await self.time_us()
        return {
            index: Pod(
                pod=index,
                state=record.state,
                life=record.life,
                load=self.loads.load(service, [record])[index],
                links=self.loads.links(service, record) if record.routable else 0,
                node=record.node,
                actor=record.actor,
                incarnation=record.incarnation,
                heartbeat_age_s=max(0, time_us - record.heartbeat_us) / 1e6,
            )
            for index, record in sorted(self.table.pods(service).items())
        }
