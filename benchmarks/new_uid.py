"""A lone new uid: what each step of its way to the router and back costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import ray

import ray_route
from benchmarks.harness import Report, take_turns, timed
from benchmarks.setting import SERVICE, deployed, local_client
from benchmarks.warm_miss import wait_until_read
from ray_route.protocol.wire import pack_question

QUESTION = "one new uid after the other: the call to the router, the read before it, the client"
_UIDS = 200


def run(*, quick: bool) -> Report:
    """Measure."""
    report = Report("new_uid", QUESTION, ("step", "µs"))
    with local_client("bench-new") as client, deployed(client):
        known = [f"known-{number}" for number in range(_UIDS)]
        client.compute_linked_pods(known, SERVICE, timeout=120)
        wait_until_read(client)
        samples = take_turns(_peers(client, known), 3 if quick else 9)
    for way, sample in samples.items():
        report.samples[way] = sample
        report.rows.append((way, f"{sample.median * 1e6:.0f}"))
    return report


def _peers(client: ray_route.RouteClient, known: Sequence[str]) -> dict[str, Callable[[], float]]:
    session, numbers = client._session, iter(range(10**9))
    router, note = session.namespace.router, session.new_uids.note

    def new() -> list[str]:
        return [f"new-{next(numbers)}" for _ in range(_UIDS)]

    def ask(uid: str) -> object:
        return ray.get(router.compute.remote(pack_question(SERVICE, {uid: 0})))

    def after(told: int) -> Callable[[str], object]:
        """Look up after as many reads in vain as it takes to leave the next out, or none."""

        def look_up(uid: str) -> object:
            note(SERVICE, 1_000, told)
            session.new_uids._left_out.clear()
            return client.compute_linked_pod(uid, SERVICE)

        return look_up

    return {
        "a call that does nothing": lambda: _each(
            known, lambda uid: ray.get(router.drop.remote(SERVICE, uid))
        ),
        "a question about a known uid": lambda: _each(known, ask),
        "a question about a new one": lambda: _each(new(), ask),
        "compute_linked_pod, the read left out": lambda: _each(new(), after(0)),
        "compute_linked_pod, with the read": lambda: _each(new(), after(1)),
        "a read in vain after the other": lambda: _each(
            new(), lambda uid: client.get_linked_pod_not_cache(uid, SERVICE)
        ),
    }


def _each(uids: Sequence[str], look_up: Callable[[str], object]) -> float:
    return statistics.median(timed(lambda uid=uid: look_up(uid)) for uid in uids)
