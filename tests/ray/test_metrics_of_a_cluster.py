"""What is counted in clients, routers and pods that really run."""

from __future__ import annotations

import urllib.error
import urllib.request
from importlib.util import find_spec
from timeit import repeat
from typing import Any

import pytest
import ray
from helpers import eventually, unique_name
from services import Counter

import ray_route
from ray_route.runtime import telemetry
from ray_route.runtime.metrics import meter

pytestmark = [pytest.mark.slow, pytest.mark.own_namespace]


def counted(client: ray_route.RouteClient, name: str, *labels: str) -> int:
    return meter(client.namespace).counts[name, labels]


def test_a_client_counts_hits_misses_and_calls(client: Any, svc: Any, u: str) -> None:
    session = client._session
    hits, links = session.near.hits, counted(client, "route_lookups", "router", "link")
    nones = counted(client, "route_lookups", "router", "none")
    assert client.get_linked_pod(u, "svc") is None
    client.compute_linked_pod(u, "svc")
    client.compute_linked_pods([u, f"{u}-2"], "svc")
    assert counted(client, "route_lookups", "router", "none") == nones + 1
    assert counted(client, "route_lookups", "router", "link") == links + 2
    assert client.call(u, "svc", "add", u) == 1
    assert session.near.hits == hits + 2
    samples = meter(client.namespace).samples
    assert samples["route_call_seconds", ("svc",)]
    assert samples["route_lookup_batch_uids", ()]


def test_errors_and_unreachable_pods_are_counted(client: Any, deploy: Any) -> None:
    errors = counted(client, "route_lookups", "router", "error")
    with pytest.raises(ray_route.NoAvailablePodError):
        client.compute_linked_pod(unique_name(), unique_name())
    assert counted(client, "route_lookups", "router", "error") == errors + 1
    service = deploy(Counter, replicas=1).service
    client.call("u", service, "add", "u")
    with pytest.raises(ray_route.PodUnavailableError):
        client.call("u", service, "exit")
    assert counted(client, "route_call_repeats", service, "unreachable") == 1


def test_what_is_counted_is_told_to_ray_once(client: Any, svc: Any, u: str) -> None:
    client.compute_linked_pod(u, "svc")
    telemetry.flush()
    place = (client.namespace, "route_lookups", ("router", "link"))
    told = telemetry._told[place]
    assert told == counted(client, "route_lookups", "router", "link") > 0
    telemetry.flush()
    assert telemetry._told[place] == told
    assert not any(meter(client.namespace).samples.values())


def test_counting_is_a_small_part_of_a_hit(client: Any, svc: Any, u: str) -> None:
    """Prints the share; the bound is generous for a shared machine."""
    client.compute_linked_pod(u, "svc")
    session = client._session

    def count() -> None:
        session.near.hits += 1

    hit = best(lambda: client.get_linked_in_cache(u, "svc"))
    share = (best(count) - best(lambda: None)) / hit
    print(f"a near hit takes {hit * 1e9:.0f} ns, counting it {share:.2%} of that")
    assert share < 0.2


def best(work: Any) -> float:
    return min(repeat(work, number=20_000, repeat=5)) / 20_000


@pytest.mark.long
@pytest.mark.skipif(
    find_spec("prometheus_client") is None, reason="Ray exports metrics with ray[default] only"
)
def test_all_arrives_where_rays_own_metrics_do(client: Any, deploy: Any) -> None:
    deployment = deploy(Counter)
    for number in range(20):
        client.call(f"u{number}", deployment.service, "add", f"u{number}")
    list(deployment.drain(0))
    wanted = [
        'ray_route_links_total{.*reason="placed"',
        'ray_route_links_total{.*reason="moved"',
        'ray_route_pods{.*state="SHUTDOWN"',
        "ray_route_pod_uids{",
        "ray_route_drains_total{",
        "ray_route_store_seconds_bucket{",
        "ray_route_router_starts_total{",
        'ray_route_controller_starts_total{.*namespace="',
        f"ray_route_pods_wanted{{.*}} {len(deployment.pods())}.0",
        "ray_route_service_problems{.*} 0.0",
    ]
    eventually(
        lambda: all(_has(exported(), want, deployment.service) for want in wanted), "all", 60
    )


def _has(text: str, want: str, service: str) -> bool:
    name, _, label = want.partition("{.*")
    of_service = f'service="{service}"' if label else ""
    return any(
        line.startswith(name) and label in line and of_service in line for line in text.splitlines()
    )


def exported() -> str:
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return str(reply.read().decode())
    except (OSError, urllib.error.URLError):
        return ""
