"""The demo: a log of events, each counted by the pod of its recipient, and a checked verdict."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ray_route.client.connect import connect
from ray_route.client.sync_client import RouteClient
from ray_route.clock import Deadline
from ray_route.demo.trace import Trace
from ray_route.demo.verdict import Ack, History, Kill, Outcome, Owner, Record, ScaleOut
from ray_route.deploying import deploy
from ray_route.deployment import Deployment
from ray_route.errors import NoAvailablePodError
from ray_route.model import Life, Pod
from ray_route.pod.current_link import current_link
from ray_route.runtime.bootstrap import Bootstrap, clear_namespace, undoing

SERVICE = "inbox"
ADDED_PODS = 2

# Large enough to be quick, small enough for something to happen between two of them.
_WINDOW = 2_000
_WINDOWS_AT_LEAST = 12
_DIES_AT_THE_LATEST_S = 1.0
_CALL_S = 60.0
_SETTLE_S = 60.0
_POLL_S = 0.1


class DemoError(Exception):
    """The demo can't go on, for a reason that is no verdict."""


class Inbox:
    """Counts each user's events. A plain class, as users write them.

    It remembers which events it has handled, so that one that is sent again counts once.
    """

    def __init__(self) -> None:
        self._handled: dict[int, str] = {}
        self._counts: Counter[str] = Counter()
        self._repeats = 0
        self._dies_after: int | None = None

    def receive(self, event: int) -> Ack:
        """Count an event for the user that it is for; say who did."""
        uid, owner = _self()
        if event in self._handled:
            self._repeats += 1
        else:
            self._handled[event] = uid
            self._counts[uid] += 1
        if self._dies_after is not None and len(self._handled) >= self._dies_after:
            _die()
        return Ack(event, uid, owner)

    def record(self) -> tuple[Owner, Record]:
        """Return all that this life remembers."""
        return _self()[1], Record(tuple(self._handled), dict(self._counts), self._repeats)

    def die(self, events: int, at_the_latest_s: float) -> Owner:
        """Die after handling so many more events, the last of them not yet acknowledged."""
        self._dies_after = len(self._handled) + events
        threading.Timer(at_the_latest_s, _die).start()  # so many may never come
        return _self()[1]


def _die() -> None:
    """End this process as the kernel does when memory runs out.

    By its own hand: whoever wants it dead may be on another machine, where its process id means
    another process.
    """
    os.kill(os.getpid(), signal.SIGKILL)


def _self() -> tuple[str, Owner]:
    link = current_link()
    assert link is not None
    return link.uid, Owner(link.pod, link.incarnation)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to replay, on how many pods, and what happens meanwhile."""

    trace: Trace
    pods: int
    kill: bool = False
    scale_out: bool = False

    def __post_init__(self) -> None:
        needed = 1 + self.kill + self.scale_out
        if len(self.trace.recipients) < needed:
            raise DemoError(f"{self.trace.name} is too short: this takes {needed} events at least")

    @property
    def uids(self) -> list[str]:
        """Every uid that the demo may link."""
        pods = range(self.pods + ADDED_PODS)
        return [*dict.fromkeys(self.trace.recipients), *map(auditor, pods)]

    @property
    def kill_at(self) -> int | None:
        """The event before which a pod is killed."""
        return len(self.trace.recipients) // 2 if self.kill else None

    @property
    def scale_out_at(self) -> int | None:
        """The event before which pods are added; half-way, unless a pod dies then."""
        share = 3 if self.kill else 2
        return len(self.trace.recipients) // share if self.scale_out else None

    @property
    def window(self) -> int:
        """How many events are sent together."""
        return max(1, min(_WINDOW, len(self.trace.recipients) // _WINDOWS_AT_LEAST))

    def windows(self) -> Iterator[range]:
        """Cut the log into windows; one begins where something happens."""
        total = len(self.trace.recipients)
        stops = {
            *range(self.window, total, self.window),
            total,
            self.kill_at or 0,
            self.scale_out_at or 0,
        }
        start = 0
        for stop in sorted(stops - {0}):
            yield range(start, stop)
            start = stop


Note = Callable[[str], None]
Advance = Callable[[int], None]


@dataclass
class Replay:
    """One run of a plan against a deployment."""

    plan: Plan
    client: RouteClient
    deployment: Deployment
    note: Note
    advance: Advance
    acks: list[Ack] = field(default_factory=list)
    failures: dict[int, Exception] = field(default_factory=dict)
    kill: Kill | None = None
    scale_out: ScaleOut | None = None

    def run(self) -> Outcome:
        """Replay the log, then ask every witness what happened."""
        began = time.perf_counter()
        for window in self.plan.windows():
            with self._meanwhile(window.start):
                self._send(window)
        seconds = time.perf_counter() - began
        self.note("asking the pods what they handled")
        pods = self._settled()
        history = self._history(pods)
        self.note("replayed")
        return Outcome(history, seconds, pods)

    def _send(self, window: range) -> None:
        """Send a window's events; those for which no pod is ready again, until one is."""
        deadline = Deadline.after(_CALL_S)
        waiting = self._send_once(window)
        while waiting and deadline.remaining():
            time.sleep(_POLL_S)
            waiting = self._send_once(waiting)
        self.advance(len(window))

    def _send_once(self, events: Sequence[int]) -> list[int]:
        """Send events, keep the answers, and return the events that no pod was ready for."""
        recipients = self.plan.trace.recipients
        calls = [(recipients[event], (event,)) for event in events]
        answers = self.client.call_many(calls, SERVICE, "receive", idempotent=True, timeout=_CALL_S)
        for event, answer in zip(events, answers, strict=True):
            self._keep(event, answer)
        return [
            event for event in events if isinstance(self.failures.get(event), NoAvailablePodError)
        ]

    def _keep(self, event: int, answer: Any) -> None:
        if isinstance(answer, Ack):
            self.acks.append(answer)
            self.failures.pop(event, None)
        else:
            self.failures[event] = answer

    @contextlib.contextmanager
    def _meanwhile(self, at: int) -> Iterator[None]:
        """Do what the plan has for this place in the log, while its window is under way."""
        if at == self.plan.kill_at:
            self._kill_a_pod(at)
        with ThreadPoolExecutor(1) as pool:
            added = pool.submit(self._add_pods, at) if at == self.plan.scale_out_at else None
            yield
            if added is not None:
                added.result()

    def _kill_a_pod(self, at: int) -> None:
        """Have the pod of lowest index die half-way through its share of the next window.

        That is pod 0 if it has uids: a pod like any other.
        """
        owners = {ack.uid: ack.owner for ack in self.acks}
        if not owners:
            why = next(iter(self.failures.values()))
            raise DemoError(f"no event before the {at:,}th was handled: {why}")
        uid = min(owners, key=lambda uid: owners[uid])
        half = 1 + self.plan.window // (2 * len(set(owners.values())))
        how = (half, _DIES_AT_THE_LATEST_S)
        victim = self.client.call(uid, SERVICE, "die", *how, timeout=_CALL_S)
        self.kill = Kill(victim, at)
        self.note(f"pod {victim.pod} is killed")

    def _add_pods(self, at: int) -> None:
        pods = range(self.plan.pods, self.plan.pods + ADDED_PODS)
        self.scale_out = ScaleOut(pods, at)
        self.note(f"pods {', '.join(map(str, pods))} are added")
        self.deployment.scale(self.plan.pods + ADDED_PODS)

    def _settled(self) -> dict[int, Pod]:
        """Return the pods once all are alive, the one that was killed in a new life."""
        deadline = Deadline.after(_SETTLE_S)
        while True:
            pods = self.deployment.pods()
            if all(self._is_settled(pod) for pod in pods.values()) or not deadline.remaining():
                return pods
            time.sleep(_POLL_S)

    def _is_settled(self, pod: Pod) -> bool:
        killed = self.kill is not None and self.kill.victim == Owner(pod.pod, pod.incarnation)
        return pod.life is Life.ALIVE and not killed

    def _history(self, pods: dict[int, Pod]) -> History:
        uids = list(dict.fromkeys(self.plan.trace.recipients))
        stored = self.client.batch_get_linked_pod(uids, SERVICE, timeout=_CALL_S)
        links = {uid: pod for pod, linked in stored.items() for uid in linked}
        living = [index for index, pod in pods.items() if pod.life is Life.ALIVE]
        return History(
            log=self.plan.trace.recipients,
            acks=self.acks,
            failures={event: str(error) for event, error in self.failures.items()},
            records=dict(self._record(index) for index in living),
            links=links,
            kill=self.kill,
            scale_out=self.scale_out,
        )

    def _record(self, pod: int) -> tuple[Owner, Record]:
        uid = auditor(pod)
        self.client.set_linked_pod_if_absent(uid, SERVICE, pod, timeout=_CALL_S)
        record: tuple[Owner, Record] = self.client.call(uid, SERVICE, "record", timeout=_CALL_S)
        return record


def auditor(pod: int) -> str:
    """Name the uid through which a pod is asked for its record.

    It reaches pods that no user has been sent to. Users' uids come from columns: none holds a
    space.
    """
    return f"auditor of pod {pod}"


def perform(plan: Plan, started: Bootstrap, note: Note, advance: Advance) -> Outcome:
    """Deploy the inbox in a namespace of its own, replay, and take everything away again."""
    namespace = f"demo-{secrets.token_hex(4)}"
    with undoing() as undo:
        undo.callback(clear_namespace, started.url, namespace, SERVICE, plan.uids)
        client = undo.enter_context(connect(namespace))
        note(f"{plan.pods} pods are started")
        deployed = deploy(Inbox, namespace=namespace, service=SERVICE, replicas=plan.pods)
        deployment = undo.enter_context(deployed)
        note("replaying")
        return Replay(plan, client, deployment, note, advance).run()
