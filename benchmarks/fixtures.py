"""What a user's test waits for: a namespace on a shared Ray, or a service without Ray."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import ray

from benchmarks.harness import Report, Sample, others_took, wait_for_quiet
from ray_route import RouteClient, deploy, testing
from ray_route.store.embedded import EmbeddedServer
from ray_route.testing.spares import Spares

T = TypeVar("T")
QUESTION = "how long a test waits for what ray_route.testing gives it"
_STOCK_S = 60.0
_WARM_MS = 100.0


class Room:
    """One user's room."""

    def __init__(self, room: str) -> None:
        self.room = room

    def say(self, text: str) -> str:
        """Answer."""
        return text


def run(*, quick: bool) -> Report:
    """Measure what a session pays once, and what each test pays."""
    tests = 8 if quick else 30
    report = Report("fixtures", QUESTION, ("what", "ms, median", "least", "most"))
    others_took.append(wait_for_quiet())
    _note(report, "a service by testing.local, and its first call", _times(tests, _local))
    store: list[EmbeddedServer] = []
    _note(report, "once: the store", _times(1, lambda: store.append(EmbeddedServer().start())))
    _note(report, "once: Ray", _times(1, _ray))
    try:
        _namespaces(report, store[0].url, tests)
    finally:
        ray.shutdown()
        store[0].stop()
    return report


def _ray() -> None:
    ray.init("local", num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False)


def _local() -> None:
    with testing.local(Room, per_uid=True) as rooms:
        rooms["ann"].say("hi")


def _namespaces(report: Report, url: str, tests: int) -> None:
    spares = Spares(url)
    try:
        _stocked(spares)
        warm, asked, served, back = [], [], [], []
        for _ in range(tests):
            _stocked(spares)
            client = _timed(warm, spares.take)
            _timed(asked, partial(client.get_linked_pod, "ann", "rooms"))
            _timed(served, partial(_deploy, client, url))
            spares.give_back(client)
        for _ in range(tests):  # tests that take no time at all
            client = _timed(back, spares.take)
            client.get_linked_pod("ann", "rooms")
            spares.give_back(client)
    finally:
        spares.close()
    both = [took + look_up for took, look_up in zip(warm, asked, strict=True)]
    _note(report, "a namespace that is in stock, and its first look-up", both)
    _note(report, "two pods in it, and the first call", served)
    _note(report, "a namespace, for tests that take no time", back)
    what = "a namespace that is in stock, and its first look-up (ms)"
    report.aim(what, "at most", _WARM_MS, Sample(both))


def _stocked(spares: Spares) -> None:
    """Return when the stock is full again, as it is while a test of some length runs."""
    end = time.monotonic() + _STOCK_S
    while len(spares) < 2 and time.monotonic() < end:
        time.sleep(0.01)


def _deploy(client: RouteClient, url: str) -> None:
    deploy(
        Room, namespace=client.namespace, service="rooms", replicas=2, per_uid=True, redis_url=url
    ).close()
    client.service("rooms", Room)["ann"].say.remote("hi").result()


def _times(number: int, work: Callable[[], object]) -> list[float]:
    took: list[float] = []
    for _ in range(number):
        _timed(took, work)
    return took


def _timed(took: list[float], work: Callable[[], T]) -> T:
    begun = time.perf_counter()
    made = work()
    took.append((time.perf_counter() - begun) * 1_000)
    return made


def _note(report: Report, what: str, took: list[float]) -> None:
    sample = report.samples[what] = Sample(took)
    figures = (sample.median, sample.low, sample.high)
    report.rows.append((what, *(f"{figure:,.1f}" for figure in figures)))
