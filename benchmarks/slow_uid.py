"""What calls of other users pay while those of one are slow, and more and more of them wait."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray_route
from benchmarks.harness import Report, Sample, others_took, wait_for_quiet
from benchmarks.setting import SERVICE, address, local_client

QUESTION = "a call of a user, alone and while 40 calls of another wait for their turns"
_ROUNDS, _QUICK_ROUNDS = 10, 4
_CALLS = 200
_USERS = [f"user-{number}" for number in range(10)]
_WAITING = 40
_NAP_S = 0.05
# Not by more than what is measured anyway: half of a millisecond is what sleeping processors make.
_LIMIT = 1.25


class User:
    """Has an object for each user."""

    def __init__(self, uid: str) -> None:
        self.uid = uid

    def call(self) -> None:
        """Do nothing."""

    def nap(self) -> None:
        """Be slow."""
        time.sleep(_NAP_S)


class AsyncUser:
    """Does the same on an event loop."""

    def __init__(self, uid: str) -> None:
        self.uid = uid

    async def call(self) -> None:
        """Do nothing."""

    async def nap(self) -> None:
        """Be slow."""
        await asyncio.sleep(_NAP_S)


class Users:
    """Has all users of its pod, one call of each at a time."""

    def call(self) -> None:
        """Do nothing."""

    def nap(self) -> None:
        """Be slow."""
        time.sleep(_NAP_S)


_KINDS: dict[str, tuple[type, dict[str, Any]]] = {
    "per_uid, in threads": (User, {"per_uid": True}),
    "per_uid, on an event loop": (AsyncUser, {"per_uid": True}),
    "turns=True": (Users, {"turns": True}),
}


def run(*, quick: bool) -> Report:
    """Measure."""
    columns = ("service", "alone, p50", "beside it, p50", "alone, p99", "beside it, p99", "unit")
    report = Report("slow_uid", QUESTION, columns)
    with local_client("bench-slow") as client:
        where: dict[str, Any] = {"namespace": client.namespace, "redis_url": address(client)}
        for number, (kind, (cls, how)) in enumerate(_KINDS.items()):
            service = f"{SERVICE}-{number}"
            with ray_route.deploy(cls, service=service, replicas=1, **how, **where):
                users = client.service(service, cls)
                _kind(report, kind, users, _QUICK_ROUNDS if quick else _ROUNDS)
    return report


def _kind(report: Report, kind: str, users: Any, rounds: int) -> None:
    _calls(users)  # what is made at first use
    alone: list[list[float]] = []
    beside: list[list[float]] = []
    for _ in range(rounds):
        others_took.append(wait_for_quiet())
        alone.append(_calls(users))
        with _slow(users["slow"].nap.remote):
            beside.append(_calls(users))
    shown = [_at(share, waits) for share in (0.5, 0.99) for waits in (alone, beside)]
    report.rows.append((kind, *(f"{sample.median:.2f}" for sample in shown), "ms"))
    report.samples |= {f"{kind}, alone": shown[0], f"{kind}, beside a slow user": shown[1]}
    report.aim(f"{kind}: p50 beside, against alone", "at most", _LIMIT, shown[1].over(shown[0]))


def _at(share: float, rounds: list[list[float]]) -> Sample:
    return Sample([sorted(waits)[int(share * len(waits))] * 1e3 for waits in rounds])


def _calls(users: Any) -> list[float]:
    return [_call(users[_USERS[number % len(_USERS)]]) for number in range(_CALLS)]


def _call(user: Any) -> float:
    begun = time.perf_counter()
    user.call.remote().result()
    return time.perf_counter() - begun


@contextmanager
def _slow(nap: Callable[[], Any]) -> Iterator[None]:
    """Have so many calls of one user wait all the time."""
    is_over = threading.Event()
    waiting = [nap() for _ in range(_WAITING)]

    def go_on() -> None:
        while waiting:
            waiting.pop(0).result()
            if not is_over.is_set():
                waiting.append(nap())

    caller = threading.Thread(target=go_on)
    caller.start()
    try:
        yield
    finally:
        is_over.set()
        caller.join()
