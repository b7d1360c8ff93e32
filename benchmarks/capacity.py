"""What one namespace bears: the unit costs of router and Redis, and whether they add up.

Processes are simulated by sessions: each has its own near cache, change stream, connections and
reports, as that of a process has; hundreds share a few processes.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import redis

import ray_route
from benchmarks.harness import Report, Sample, others_took, wait_for_quiet
from benchmarks.setting import SERVICE, address, deployed, local_client
from ray_route.client.session import Session
from ray_route.client.sessions import begun
from ray_route.clock import Deadline
from ray_route.runtime.metrics import LOOKUPS, meter
from ray_route.runtime.namespace import Namespace
from ray_route.store.url import parse_url

QUESTION = "processor time of router and Redis for what processes ask, and whether it adds up"
# Leases that are short beside the default's 240 s, so that a run sees some of them.
OPTIONS = {"ttl_s": 25.0, "margin_s": 5.0}
LEASE_S = OPTIONS["ttl_s"] - OPTIONS["margin_s"]
# A link in use is read again when about so much of its lease has passed.
_READ_EVERY = 0.6
_REAL = (1, 8, 32)
_SIMULATED = (50, 100, 200)
_FLEETS = 2
_USERS = 100
# A script has the uids of one shard: of few uids each has its own.
_FEW = f"a known uid read, {_USERS} at once"
# The formula's constants: docs/howto/sizing.md.
_SESSION_KB, _CLIENT_KB = 250, 5
_BEAT_BYTES, _COUNTER_BYTES = 500, 25
_TICK = os.sysconf("SC_CLK_TCK")


@ray.remote(num_cpus=0)
class Fleet:
    """A process with one or many sessions, each as that of a process of its own."""

    def __init__(self, namespace: str, url: str) -> None:
        self._about = namespace, parse_url(url)
        self._sessions: list[Session] = []
        self._reported = 0
        self._numbers = itertools.count()

    def open(self, count: int) -> int:
        """Open so many sessions more; return the process's memory in bytes."""
        for _ in range(count):
            name, url = self._about
            self._sessions.append(begun(Namespace(name, url, {}, Deadline.after(120))))
            self._count_reports(self._sessions[-1])
        return _memory("self")

    def _count_reports(self, session: Session) -> None:
        send = session._uses._send

        def counted(service: str, used: dict[str, int]) -> None:
            self._reported += len(used)
            send(service, used)

        session._uses._send = counted

    def meet(self, first: int, count: int) -> int:
        """Have each session look up some users; return how many links they have."""
        uids = [f"user-{number}" for number in range(first, first + count)]
        for session in self._sessions:
            ray_route.RouteClient(session).compute_linked_pods(uids, SERVICE, timeout=120)
        return sum(session.near.held for session in self._sessions)

    def use(self, first: int, count: int, seconds: float) -> tuple[int, int, int]:
        """Have each session look its users up again and again; return misses, reads and reports."""
        uids = [f"user-{number}" for number in range(first, first + count)]
        clients = [ray_route.RouteClient(session) for session in self._sessions]
        hits, asked, end = -self._hits(), 0, time.monotonic() + seconds
        read, reported = -self._read_ahead(), -self._reported
        while time.monotonic() < end:
            for client in clients:
                client.compute_linked_pods(uids, SERVICE, timeout=120)
                asked += len(uids)
            time.sleep(LEASE_S / 50)
        hits += self._hits()
        return asked - hits, read + self._read_ahead(), reported + self._reported

    def _read_ahead(self) -> int:
        return meter(self._about[0]).counts[LOOKUPS.name, ("redis", "ahead")]

    def _hits(self) -> int:
        return sum(session.near.hits for session in self._sessions)

    def place(self, seconds: float, at_once: int) -> int:
        """Place new users, so many at a time; return how many."""
        client = ray_route.RouteClient(self._sessions[0])
        placed, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            uids = [f"new-{os.getpid()}-{next(self._numbers)}" for _ in range(at_once)]
            client.compute_linked_pods(uids, SERVICE, timeout=120)
            placed += at_once
        return placed

    def read(self, first: int, count: int, times: int) -> int:
        """Read known users from Redis that the near cache has forgotten; return how many."""
        session, read = self._sessions[0], 0
        uids = [f"user-{number}" for number in range(first, first + count)]
        for _ in range(times):
            session._read_again(SERVICE, uids)
            read += count
        return read

    def report(self, first: int, count: int, times: int) -> int:
        """Report users as used, as after a read; return how many reports of one user that was."""
        session = self._sessions[0]
        links = session.near.get_all(SERVICE, {f"user-{n}": 0 for n in range(first, first + count)})
        used = {uid: link.epoch for uid, link in links.items() if link is not None}
        router = session.namespace.router
        for _ in range(times):
            ray.get(router.report_use.remote(SERVICE, used))
        return len(used) * times


def _memory(pid: str) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Spent:
    """What router and Redis have done since some moment, per second or in all."""

    router_s: float = 0.0
    redis_s: float = 0.0
    sent_bytes: float = 0.0
    calls: float = 0.0
    took_s: float = 0.0


class Servers:
    """The router's process and the server."""

    def __init__(self, client: ray_route.RouteClient) -> None:
        self.redis = redis.Redis.from_url(address(client), protocol=2)
        self.pid, _ = ray.get(client._session.namespace.router.whereabouts.remote())

    def _now(self) -> tuple[float, ...]:
        stat = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        info: dict[str, Any] = self.redis.info("all")
        return (
            (int(stat[11]) + int(stat[12])) / _TICK,
            info["used_cpu_user"] + info["used_cpu_sys"],
            info["total_net_output_bytes"],
            info["total_commands_processed"],
            time.monotonic(),
        )

    @contextmanager
    def during(self) -> Iterator[Spent]:
        """Fill in what was done meanwhile."""
        watch, before = Spent(), self._now()
        yield watch
        done = [late - early for early, late in zip(before, self._now(), strict=True)]
        watch.router_s, watch.redis_s, watch.sent_bytes, watch.calls, watch.took_s = done


def run(*, quick: bool) -> Report:
    """Measure unit costs, then a load of all of them together against their sum."""
    report = Report("capacity", QUESTION, ("what", "number", "figure", "unit"))
    seconds = 4.0 if quick else 10.0
    with local_client("bench-capacity", **OPTIONS) as client, deployed(client):
        others_took.append(wait_for_quiet())
        costs = _Costs(client, report, seconds)
        for count in _SIMULATED[: 1 if quick else 3]:
            costs.idle(count)
        costs.of_each_question()
        for count in _REAL[: 2 if quick else 3]:
            costs.placing_by(count)
        costs.all_together(_USERS)
    return report


class _Costs:
    """Measures what each question costs router and Redis, in processor time."""

    def __init__(self, client: ray_route.RouteClient, report: Report, seconds: float) -> None:
        self._client = client
        self._report = report
        self._seconds = seconds
        self._servers = Servers(client)
        self._unit: dict[str, Spent] = {}
        self._fleets: list[Any] = []
        self._open = 0
        self._idle_s = Spent()

    def _fleet(self, count: int) -> list[Any]:
        """Return so many real processes with one session at least."""
        about = self._client.namespace, address(self._client)
        new = [Fleet.remote(*about) for _ in range(count - len(self._fleets))]
        ray.get([one.open.remote(1) for one in new])
        self._fleets += new
        self._open += len(new)
        return self._fleets[:count]

    def _row(self, what: str, number: str, figure: float, unit: str) -> None:
        self._report.samples[f"{what}, {number}"] = Sample([figure])
        self._report.rows.append((what, number, f"{figure:,.3g}", unit))

    # Each alone.

    def of_each_question(self) -> None:
        """Measure reads, reports and placements of one process, less what goes on without them."""
        one = self._fleet(_FLEETS + 1)[_FLEETS]  # the others have many sessions
        ray.get(one.meet.remote(0, 5_000))
        ways: dict[str, Callable[[], int]] = {
            "a known uid read, 500 at once": lambda: ray.get(one.read.remote(0, 500, 200)),
            _FEW: lambda: ray.get(one.read.remote(0, _USERS, 1_000)),
            "a uid reported as used": lambda: ray.get(one.report.remote(0, 1_000, 20)),
            "a new uid alone": lambda: ray.get(one.place.remote(self._seconds, 1)),
            "a new uid of 1,000": lambda: ray.get(one.place.remote(self._seconds, 1_000)),
        }
        for what, work in ways.items():
            with self._servers.during() as watch:
                count = work()
            idle = watch.took_s / self._idle_s.took_s
            router_s = max(0.0, watch.router_s - idle * self._idle_s.router_s) / count
            redis_s = max(0.0, watch.redis_s - idle * self._idle_s.redis_s) / count
            sent = max(0.0, watch.sent_bytes - idle * self._idle_s.sent_bytes) / count
            self._unit[what] = Spent(router_s, redis_s, sent)
            self._row(what, "router", router_s * 1e6, "µs")
            self._row(what, "Redis", redis_s * 1e6, "µs")

    def placing_by(self, count: int) -> None:
        """Have so many real processes place new uids one by one."""
        fleet = self._fleet(count)
        with self._servers.during() as watch:
            placed = sum(ray.get([one.place.remote(self._seconds, 1) for one in fleet]))
        number = f"{count} real processes"
        self._row("new uids, one by one", number, placed / watch.took_s, "a second")
        self._row("the router meanwhile", number, watch.router_s / watch.took_s, "processors")
        self._row("the router's time for one", number, watch.router_s / placed * 1e6, "µs")

    def idle(self, count: int) -> None:
        """Open more sessions, which only listen; tell what each costs."""
        fleet, before = self._fleet(_FLEETS), self._open
        share = -(-(count - before) // len(fleet))
        memory = ray.get([one.open.remote(0) for one in fleet])
        if share > 0:
            grown = ray.get([one.open.remote(share) for one in fleet])
            self._open += share * len(fleet)
            kb = (sum(grown) - sum(memory)) / (self._open - before) / 1e3
            self._row("memory of a session", f"{self._open} sessions", kb, "KB")
            self._bound(f"memory of a session, {self._open} of them", _SESSION_KB, kb)
        with self._servers.during() as watch:
            time.sleep(self._seconds)
        self._idle_s = watch
        number = f"{self._open} sessions"
        self._row("the idle router", number, watch.router_s / watch.took_s, "processors")
        redis_s = watch.redis_s / watch.took_s / self._open
        self._row("Redis for a session that only listens", number, redis_s * 1e6, "µs a second")
        sent = watch.sent_bytes / watch.took_s / self._open
        self._row("change stream to a session", number, sent, "bytes a second")
        held = self._servers.redis.info("memory")["mem_clients_normal"] / self._open
        self._row("memory of Redis for a session", number, held / 1e3, "KB")

    # All together, against the formula.

    def all_together(self, users: int) -> None:
        """Have all sessions use their users for some leases; compare with what they should cost."""
        number = f"{self._open} sessions, {users} users each"
        ray.get([one.meet.remote(0, users) for one in self._fleets])
        seconds = 3 * LEASE_S
        with self._servers.during() as watch:
            told = ray.get([one.use.remote(0, users, seconds) for one in self._fleets])
        misses, read, reported = (sum(some) for some in zip(*told, strict=True))
        self._row("misses of links in use", number, misses, "")
        expected = self._open * users * seconds / (_READ_EVERY * LEASE_S)
        self._row("links read again", number, read, "")
        self._row("the same by the formula", number, expected, "")
        self._check("links read again", expected, read)
        self._row("reports of use", number, reported, "")
        idle, link = watch.took_s / self._idle_s.took_s, self._unit[_FEW]
        use = self._unit["a uid reported as used"]
        redis_s = idle * self._idle_s.redis_s + read * link.redis_s + reported * use.redis_s
        router_s = idle * self._idle_s.router_s + reported * use.router_s
        stream = self._open * (_BEAT_BYTES + _COUNTER_BYTES * self._told_a_second(reported, watch))
        sent = stream * watch.took_s + read * link.sent_bytes
        for what, expected, got, unit in (
            ("Redis", redis_s, watch.redis_s, "processors"),
            ("the router", router_s, watch.router_s, "processors"),
            ("Redis sends", sent, watch.sent_bytes, "bytes a second"),
        ):
            self._row(what, number, got / watch.took_s, unit)
            self._row(f"{what}, by the formula", number, expected / watch.took_s, unit)
            self._check(what, expected, got)
        held = self._servers.redis.info("memory")["mem_clients_normal"] / self._open
        self._row("memory of Redis for a session in use", number, held / 1e3, "KB")
        self._bound("memory of Redis for a session", _CLIENT_KB, held / 1e3)

    def _told_a_second(self, reported: int, watch: Spent) -> float:
        """Return how many counters a beat tells, if the reported uses spread evenly over shards."""
        shards = self._client._session.namespace.keys.shards
        return min(shards, reported / watch.took_s)

    def _bound(self, what: str, most: float, got: float) -> None:
        self._report.aim(
            f"{what}: of what the formula says (times)", "at most", 1, Sample([got / most])
        )

    def _check(self, what: str, expected: float, got: float) -> None:
        off = Sample([max(expected, got) / max(1e-9, min(expected, got))])
        self._report.aim(f"{what}: formula and simulation apart (times)", "at most", 2, off)
