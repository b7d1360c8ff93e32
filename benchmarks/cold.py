"""A cold crowd: how fast it is placed, and whether the router answers others meanwhile."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator

import ray

import ray_route
from benchmarks.harness import Report, Sample, take_turns, timed
from benchmarks.setting import PODS, Pod, local_client, plain, store_of
from ray_route.store.connect import Store
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls, Writer

QUESTION = "placing new uids: one at a time, and many by compute_linked_pods"
_ONE_BY_ONE = 2_000
_BETWEEN_S = 0.005
_LONE = 60
_LONE_RUNS = 25


@ray.remote(num_cpus=0)
class Bystander:
    """Another process, which places one new uid after the other and notes how long each takes."""

    def __init__(self, namespace: str, url: str) -> None:
        self._client = ray_route.connect(namespace, url)
        self._numbers = itertools.count()
        self._client.compute_linked_pod("warm-up", "bench")

    def watch(self, seconds: float) -> list[float]:
        """Return the latencies over some seconds."""
        took, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            uid = f"bystander-{os.getpid()}-{next(self._numbers)}"
            took.append(timed(lambda uid=uid: self._client.compute_linked_pod(uid, "bench")))
            time.sleep(_BETWEEN_S)
        return took


@ray.remote(num_cpus=0, max_concurrency=1_000)
class Noop:
    """An actor like the router, which does nothing."""

    async def hop(self) -> None:
        """Answer."""

    async def carry(self, _: str, wanted: dict[str, int], __: str) -> dict[str, ray_route.Link]:
        """Answer as the router does to the same question."""
        return {uid: ray_route.Link(0, 7, 8, persistent=False, lease_s=9.0) for uid in wanted}


def run(*, quick: bool) -> Report:
    """Measure."""
    count, runs = (20_000, 3) if quick else (100_000, 5)
    report = Report("cold", QUESTION, ("what", "µs per uid, or as said", "uids/s"))
    with local_client("bench-cold") as client:
        options = {"namespace": client.namespace, "service": "bench", "replicas": PODS}
        store, _ = store_of(client)
        url = f"redis://:{store.url.password}@{store.url.address}/0"
        with ray_route.deploy(Pod, **options, redis_url=url):
            bystander = Bystander.remote(client.namespace, url)
            idle = ray.get(bystander.watch.remote(3))
            rounds = itertools.count()
            busy: list[float] = []

            def bulk() -> float:
                return _bulk(client, bystander, f"cold-{next(rounds)}", count, busy)

            peers = {
                "EVALSHA each": lambda: _each(store, f"one-{next(rounds)}"),
                "compute_linked_pods": bulk,
            }
            samples = take_turns(peers, runs)
            _lone(report, client, 5 if quick else _LONE_RUNS)
    for way, sample in samples.items():
        report.samples[way] = sample
        report.rows.append((way, f"{sample.median * 1e6:.1f}", f"{1 / sample.median:,.0f}"))
    factor = samples["EVALSHA each"].over(samples["compute_linked_pods"])
    report.aim(f"{count:,} new uids, against an EVALSHA for each (times)", "at least", 15, factor)
    # One p99 over all runs: a single run has about a hundred calls, whose p99 is their worst.
    for what, took in (("alone", idle), ("during bulk placement", busy)):
        sample = report.samples[f"p99 {what}"] = Sample([_p99(took) * 1e3])
        report.rows.append(
            (f"p99 of {len(took)} single calls {what}, ms", f"{sample.median:.1f}", "")
        )
    during = report.samples["p99 during bulk placement"]
    report.aim("p99 of another process's single calls meanwhile (ms)", "at most", 50, during)
    return report


def _lone(report: Report, client: ray_route.RouteClient, runs: int) -> None:
    """Place one uid after the other, with nobody else there."""
    noop, session, numbers = Noop.remote(), client._session, itertools.count()
    client.compute_linked_pod("lone", "bench")  # the server learns the script
    store, _ = store_of(client)
    redis, script = plain(store), LinkCalls(Keys("lone", 256), ray_route.RouteConfig())

    def evalsha(uid: str) -> None:
        shard = script.keys.shard(uid)
        redis.execute_command(
            *script.set_if_absent(Writer(1), shard, "bench", [uid], ["1:7"]).words
        )

    def carried(uid: str) -> None:
        ray.get(noop.carry.remote("bench", {uid: 0}, session.namespace.node))

    ways: dict[str, Callable[[str], object]] = {
        "a bare hop": lambda _: ray.get(noop.hop.remote()),
        "a hop with question and answer": carried,
        "an EVALSHA": evalsha,
        "a lone look-up": lambda uid: client.compute_linked_pod(uid, "bench"),
    }
    peers = {way: lambda work=work: _middle(work, numbers) for way, work in ways.items()}
    samples = take_turns(peers, runs)
    for way, sample in samples.items():
        report.samples[way] = sample
        report.rows.append((way, f"{sample.median * 1e6:.0f}", ""))
    lone, script_alone = samples["a lone look-up"], samples["an EVALSHA"]
    for way in ("a bare hop", "a hop with question and answer"):
        both = zip(samples[way].values, script_alone.values, strict=True)
        factor = lone.over(Sample([hop + alone for hop, alone in both]))
        report.aim(f"a lone look-up, against {way} and an EVALSHA (times)", "at most", 1.3, factor)
    redis.close()


def _middle(work: Callable[[str], object], numbers: Iterator[int]) -> float:
    """Return the time of one of many; the rare slow ones are the machine's."""
    uids = [f"lone-{next(numbers)}" for _ in range(_LONE)]
    return statistics.median(timed(lambda uid=uid: work(uid)) for uid in uids)


def _p99(took: list[float]) -> float:
    return statistics.quantiles(took, n=100, method="inclusive")[98]


def _bulk(
    client: ray_route.RouteClient, bystander: object, prefix: str, count: int, busy: list[float]
) -> float:
    uids = [f"{prefix}-{number}" for number in range(count)]
    # Watched for about as long as it takes: 10 to 40 µs a uid.
    watching = bystander.watch.remote(count * 15e-6)  # type: ignore[attr-defined]
    begun = time.perf_counter()
    answers = client.compute_linked_pods(uids, "bench", timeout=120)
    took = time.perf_counter() - begun
    assert all(isinstance(answer, ray_route.Link) for answer in answers.values())
    busy.extend(ray.get(watching))
    return took / count


def _each(store: Store, namespace: str) -> float:
    """Place uids one by one, with the same script, in a namespace of their own."""
    keys = Keys(namespace, 256)
    calls = LinkCalls(keys, ray_route.RouteConfig())
    client = plain(store)

    def work() -> None:
        for number in range(_ONE_BY_ONE):
            uid = f"user-{number}"
            call = calls.set_if_absent(Writer(1), keys.shard(uid), "bench", [uid], ["1:7"])
            client.execute_command(*call.words)

    took = timed(work) / _ONE_BY_ONE
    client.close()
    return took
