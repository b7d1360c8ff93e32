"""The suite of the store once more, over a Redis Cluster and through Sentinel, old and new.

Its tests are those of other modules; here they get other servers.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import test_bulk_reads
import test_links_against_a_model
import test_links_epochs
import test_links_one_writer
import test_links_owner_changes
import test_links_removal
import test_links_restore
import test_links_set_if_absent
import test_open_namespace
import test_pod_leases
import test_scripts_and_pipelines
import test_shards
from servers import ClusterServers, SentinelServers

from ray_route.store.connect import Store
from ray_route.store.scripts import Call
from ray_route.store.url import parse_url

Servers = ClusterServers | SentinelServers
MODULES = (
    test_bulk_reads,
    test_links_against_a_model,
    test_links_epochs,
    test_links_one_writer,
    test_links_owner_changes,
    test_links_removal,
    test_links_restore,
    test_links_set_if_absent,
    test_open_namespace,
    test_pod_leases,
    test_scripts_and_pipelines,
    test_shards,
)
# These start and end a server of their own, count one server's commands, or choose one.
ONE_SERVER = ("mortal", "tmp_path", "script_calls", "indirect")


def collected(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield a module's fixtures, and its tests under names that no other module has."""
    for name, value in vars(module).items():
        if type(value).__name__ == "FixtureFunctionDefinition":
            yield name, value
        elif name.startswith("test_") and not any(
            word in inspect.getsource(value) for word in ONE_SERVER
        ):
            yield f"{module.__name__}__{name.removeprefix('test_')}", value


for module in MODULES:
    globals().update(collected(module))


@pytest.fixture(
    scope="module",
    params=[(kind, flavor) for kind in ("cluster", "sentinel") for flavor in ("valkey", "redis")],
    ids="-".join,
)
def server(request: pytest.FixtureRequest) -> Iterator[Servers]:
    kind, flavor = request.param
    # No failover is meant here, and on a busy machine a primary may be silent for a while.
    sentinel = SentinelServers(flavor, down_after_ms=60_000)
    with ClusterServers(flavor) if kind == "cluster" else sentinel as running:
        yield running


@pytest.fixture(scope="module")
def opened(server: Servers) -> Iterator[Store]:
    store = Store(parse_url(server.url))
    yield store
    store.close()


@pytest.fixture
def store(opened: Store) -> Store:
    opened.one(Call("", ("FLUSHALL",)))
    return opened
