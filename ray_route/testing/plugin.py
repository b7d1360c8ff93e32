"""Fixtures for pytest: a Ray and a store that tests share, and a namespace for each test.

Have them by `pytest_plugins = ["ray_route.testing.plugin"]` in your topmost `conftest.py`. What
nobody asks for is not started. A fixture of yours with the same name gives another Ray, or Redis.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from ray_route.client.sync_client import RouteClient
from ray_route.store.embedded import EmbeddedServer
from ray_route.testing.spares import Spares

_CPUS = 4


@pytest.fixture(scope="session")
def ray_route_ray() -> Iterator[None]:
    """A Ray: the one that this process is in, or else one of its own until the session ends."""
    if ray.is_initialized():
        yield
        return
    ray.init("local", num_cpus=_CPUS, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def ray_route_redis_url() -> Iterator[str]:
    """The URL of a store: of an embedded server that ends with the session."""
    with EmbeddedServer() as server:
        yield server.url


@pytest.fixture(scope="session")
def ray_route_spares(ray_route_ray: None, ray_route_redis_url: str) -> Iterator[Spares]:  # noqa: ARG001
    """Namespaces that are opened ahead, while tests run: so the next one need not wait."""
    spares = Spares(ray_route_redis_url)
    yield spares
    spares.close()


@pytest.fixture
def ray_route_client(ray_route_spares: Spares) -> Iterator[RouteClient]:
    """A client of a namespace that no other test has; what it has in Ray is ended afterwards."""
    client = ray_route_spares.take()
    yield client
    ray_route_spares.give_back(client)


@pytest.fixture
def ray_route_namespace(ray_route_client: RouteClient) -> str:
    """The name of that namespace, for `deploy` and `connect`, with `ray_route_redis_url`."""
    return ray_route_client.namespace
