"""One load client: calls uids for a while, and tells every second how that went."""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import ray

from ray_route.client.connect import CONNECT_TIMEOUT_S
from ray_route.client.sessions import open_client
from ray_route.client.sync_client import RouteClient
from ray_route.clock import Deadline
from ray_route.errors import RouteError
from ray_route.pod.current_link import current_link
from ray_route.store.url import StoreUrl

# Latencies are kept in buckets 2 % wide: a percentile is that exact, whatever the number of calls.
_GROWTH = 1.02
_LEAST_S = 1e-5


@dataclass
class Second:
    """What happened in one second of one client, or of several: they add up.

    `took` maps buckets of latency to calls; `moved` counts calls served by another life of a pod
    than the call before for the same uid.
    """

    calls: int = 0
    failed: int = 0
    hits: int = 0
    moved: int = 0
    took: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, other: Second) -> Second:
        """Take in another."""
        self.calls += other.calls
        self.failed += other.failed
        self.hits += other.hits
        self.moved += other.moved
        self.took.update(other.took)
        self.errors.update(other.errors)
        return self

    def note(self, seconds: float) -> None:
        """Take in one answered call."""
        self.calls += 1
        self.took[bucket(seconds)] += 1

    def percentile_ms(self, share: float) -> float | None:
        """The latency that this share of calls did not exceed; None if there were none."""
        left = share * self.took.total()
        for number in sorted(self.took):
            left -= self.took[number]
            if left <= 0:
                return round(_LEAST_S * _GROWTH**number * 1e3, 4)
        return None


def bucket(seconds: float) -> int:
    """Return the number of the first bucket that holds a latency."""
    return max(0, math.ceil(math.log(seconds / _LEAST_S, _GROWTH)))


@dataclass(frozen=True)
class Assignment:
    """What a client does: `uids` are drawn from a Zipf law if `zipf`, else evenly, or replayed."""

    namespace: str
    service: str
    url: StoreUrl
    seed: int
    users: int
    zipf: float | None
    trace: Sequence[str] | None
    threads: int
    duration_s: float

    def draw(self, thread: int) -> Iterator[str]:
        """Draw uids for ever, others in each thread."""
        if self.trace is not None:
            return itertools.cycle(self.trace[thread :: self.threads] or self.trace)
        return self._drawn(random.Random(f"{self.seed}-{thread}"))  # noqa: S311 - no secret

    def _drawn(self, at_random: random.Random) -> Iterator[str]:
        if self.zipf is None:
            while True:
                yield f"user-{at_random.randrange(self.users)}"
        weights = itertools.accumulate((n + 1) ** -self.zipf for n in range(self.users))
        cumulated = list(weights)
        while True:
            for drawn in at_random.choices(range(self.users), cum_weights=cumulated, k=1_000):
                yield f"user-{drawn}"


class LoadGenerator:
    """The actor: runs its assignment in threads; `seconds` tells what is new."""

    def __init__(self, assignment: Assignment) -> None:
        self._order = assignment
        deadline = Deadline.after(CONNECT_TIMEOUT_S)
        where = (assignment.namespace, assignment.url)
        self._client = open_client(RouteClient, *where, {}, deadline)
        self._lock = threading.Lock()
        self._second = Second()
        self._last: dict[str, tuple[int, int]] = {}
        self._end = threading.Event()

    def node(self) -> str:
        """The node that this client runs on."""
        return ray.get_runtime_context().get_node_id()

    def start(self) -> None:
        """Begin."""
        for thread in range(self._order.threads):
            threading.Thread(target=self._work, args=(thread,), daemon=True).start()

    def take(self) -> Second:
        """Return what happened since this was asked before."""
        with self._lock:
            taken, self._second = self._second, Second()
        return taken

    def stop(self) -> None:
        """End, at once."""
        self._end.set()

    def _work(self, thread: int) -> None:
        uids, end = self._order.draw(thread), time.monotonic() + self._order.duration_s
        while time.monotonic() < end and not self._end.is_set():
            self._call(next(uids))

    def _call(self, uid: str) -> None:
        client, service = self._client, self._order.service
        hit = client.get_linked_in_cache(uid, service) is not None
        begun = time.perf_counter()
        try:
            owner = client.call(uid, service, "who", idempotent=True, timeout=30)
        except (RouteError, ray.exceptions.RayError) as error:
            with self._lock:
                self._second.failed += 1
                self._second.errors[type(error).__name__] += 1
            return
        took = time.perf_counter() - begun
        with self._lock:
            self._second.note(took)
            self._second.hits += hit
            self._second.moved += self._last.get(uid, owner) != owner
            self._last[uid] = owner


class Target:
    """The service under load: says which life of which pod serves."""

    async def who(self) -> tuple[int, int]:
        """Return pod and incarnation."""
        link = current_link()
        assert link is not None
        return link.pod, link.incarnation
