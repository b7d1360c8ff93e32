"""Runs the benchmark: pods, clients on every node, faults and growth on the way, the result."""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_route._version import __version__
from ray_route.bench.load_generator import Assignment, LoadGenerator, Second, Target
from ray_route.client.sessions import open_client
from ray_route.client.sync_client import RouteClient
from ray_route.clock import Deadline
from ray_route.deploying import deploy
from ray_route.deployment import Deployment
from ray_route.model import Life
from ray_route.protocol.names import RAY_NAMESPACE
from ray_route.runtime.bootstrap import Bootstrap, clear_namespace, undoing

SERVICE = "bench"
_ANSWER_S = 60.0
Note = Callable[["Row"], None]


@dataclass(frozen=True)
class Plan:
    """What to run; durations in seconds."""

    users: int = 100_000
    pods: int = 8
    clients: int = 4
    threads: int = 4
    duration_s: float = 30.0
    warm_up_s: float = 3.0
    zipf: float | None = None
    trace: Sequence[str] | None = None
    kill_every_s: float | None = None
    scale_at_s: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """One second of all clients, which ended at `at_s`; the warm-up ends at 0."""

    at_s: float
    measured: bool
    calls: int
    failed: int
    moved: int
    hit_ratio: float
    p50_ms: float | None
    p99_ms: float | None
    events: tuple[str, ...] = ()


@dataclass
class Result:
    """What came out. `seconds` has the warm-up too; the totals do not."""

    plan: dict[str, Any]
    versions: dict[str, str]
    nodes: int
    seconds: list[Row] = field(default_factory=list)
    total: Second = field(default_factory=Second)
    measured_s: float = 0.0
    kills: int = 0

    def summary(self) -> dict[str, Any]:
        """Return everything as plain values."""
        total = self.total
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
        return {
            "plan": self.plan,
            "versions": self.versions,
            "nodes": self.nodes,
            "measured_s": round(self.measured_s, 2),
            "calls": total.calls,
            "calls_per_s": round(total.calls / self.measured_s, 1),
            "latency_ms": {name: total.percentile_ms(share) for name, share in shares.items()},
            "hit_ratio": round(total.hits / max(1, total.calls), 4),
            "links_moved": total.moved,
            "failed_calls": total.failed,
            "errors": dict(total.errors),
            "pods_killed": self.kills,
            "seconds": [asdict(row) for row in self.seconds],
        }


def run(plan: Plan, started: Bootstrap, note: Note) -> Result:
    """Run the plan on a Ray that this process has joined; `note` hears of every second."""
    namespace = f"bench-{uuid.uuid4().hex[:8]}"
    with undoing() as undo:
        undo.callback(clear_namespace, started.url, namespace, SERVICE, _uids(plan))
        deadline = Deadline.after(_ANSWER_S)
        client = open_client(RouteClient, namespace, started.url, {}, deadline)
        undo.callback(client.close)
        deployment = undo.enter_context(_pods(plan, started, namespace))
        clients = undo.enter_context(_clients(plan, started, namespace))
        result = Result(
            {name: value for name, value in asdict(plan).items() if name != "trace"},
            {"ray_route": __version__, "ray": ray.__version__},
            len({ray.get(each.node.remote()) for each in clients}),
        )
        _Run(plan, client, deployment, clients, result, note).go()
        return result


def _uids(plan: Plan) -> Sequence[str]:
    if plan.trace is not None:
        return sorted(set(plan.trace))
    return [f"user-{number}" for number in range(plan.users)]


def _pods(plan: Plan, started: Bootstrap, namespace: str) -> Deployment:
    options = {"scheduling_strategy": "SPREAD"}
    where: dict[str, Any] = {"namespace": namespace, "service": SERVICE, "redis_url": started.url}
    return deploy(Target, replicas=plan.pods, ray_actor_options=options, **where)


@contextlib.contextmanager
def _clients(plan: Plan, started: Bootstrap, namespace: str) -> Iterator[list[Any]]:
    """Make load clients, in turn on every node."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    made: list[Any] = []
    generator: Any = ray.remote(LoadGenerator)
    lasting_s = plan.warm_up_s + plan.duration_s
    for number in range(plan.clients):
        node = nodes[number % len(nodes)]
        there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        trace = plan.trace[number :: plan.clients] if plan.trace is not None else None
        assignment = Assignment(
            namespace,
            SERVICE,
            started.url,
            plan.seed * 1_000 + number,
            plan.users,
            plan.zipf,
            trace,
            plan.threads,
            lasting_s,
        )
        options = {"num_cpus": 0, "scheduling_strategy": there, "max_concurrency": 4}
        made.append(generator.options(**options).remote(assignment))
    try:
        ray.get([each.node.remote() for each in made], timeout=_ANSWER_S)
        yield made
    finally:
        for each in made:
            ray.kill(each)


@dataclass
class _Run:
    plan: Plan
    client: RouteClient
    deployment: Deployment
    clients: list[Any]
    result: Result
    note: Note

    def go(self) -> None:
        """LoadGenerator, and once a second gather what the clients tell."""
        ray.get([each.start.remote() for each in self.clients], timeout=_ANSWER_S)
        begun = last = time.monotonic()
        due = self._due()
        while last - begun < self.plan.warm_up_s + self.plan.duration_s:
            time.sleep(max(0.0, last + 1.0 - time.monotonic()))
            now = time.monotonic()
            at_s = now - begun - self.plan.warm_up_s
            events = self._act(due, at_s)
            taken = ray.get([each.take.remote() for each in self.clients], timeout=_ANSWER_S)
            self._gather(taken, at_s, now - last, events)
            last = now

    def _due(self) -> list[tuple[float, Callable[[], str]]]:
        """List what is to happen, by its time after the warm-up."""
        due: list[tuple[float, Callable[[], str]]] = []
        if self.plan.scale_at_s is not None:
            due.append((self.plan.scale_at_s, self._scale))
        if self.plan.kill_every_s:
            at_s = self.plan.kill_every_s
            while at_s < self.plan.duration_s:
                due.append((at_s, self._kill))
                at_s += self.plan.kill_every_s
        return sorted(due, key=lambda item: item[0])

    def _act(self, due: list[tuple[float, Callable[[], str]]], at_s: float) -> tuple[str, ...]:
        events = []
        while due and due[0][0] <= at_s:
            events.append(due.pop(0)[1]())
        return tuple(events)

    def _scale(self) -> str:
        replicas = self.plan.pods + max(1, self.plan.pods // 2)
        self.deployment.scale(replicas)
        return f"scaled from {self.plan.pods} to {replicas} pods"

    def _kill(self) -> str:
        pods = self.client.pods(SERVICE)
        alive = [pod for pod in pods.values() if pod.life is Life.ALIVE]
        victim = random.Random(self.plan.seed + self.result.kills).choice(alive)  # noqa: S311
        # Ray restarts it, with empty memory: no_restart would leave fewer each time.
        handle = ray.get_actor(victim.actor, namespace=RAY_NAMESPACE)
        ray.kill(handle, no_restart=False)
        self.result.kills += 1
        return f"killed pod {victim.pod}"

    def _gather(
        self, taken: list[Second], at_s: float, lasted_s: float, events: tuple[str, ...]
    ) -> None:
        both = Second()
        for each in taken:
            both.add(each)
        row = Row(
            round(at_s, 2),
            at_s > lasted_s / 2,
            both.calls,
            both.failed,
            both.moved,
            round(both.hits / max(1, both.calls), 4),
            both.percentile_ms(0.5),
            both.percentile_ms(0.99),
            events,
        )
        self.result.seconds.append(row)
        if row.measured:
            self.result.total.add(both)
            self.result.measured_s += lasted_s
        self.note(row)
