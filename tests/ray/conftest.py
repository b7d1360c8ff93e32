"""Services for tests on real Ray actors; each test cleans up what it made, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from commands import Command
from helpers import end_router, eventually, namespaces_with_routers, unique_name
from services import Counter

import ray_route

Deploy = Callable[..., ray_route.Deployment]


@pytest.fixture(scope="module", autouse=True)
def no_router_stays() -> Iterator[None]:
    """What a module leaves behind would take its share of the machine until the session's end."""
    others = namespaces_with_routers() if ray.is_initialized() else set()
    yield
    if ray.is_initialized():
        eventually(lambda: namespaces_with_routers() <= others, "this module's routers have ended")


@pytest.fixture(scope="module")
def client(ray_session: None) -> Iterator[ray_route.RouteClient]:
    """A client of the module's own namespace, on the Ray session's embedded server."""
    namespace = unique_name()
    with ray_route.connect(namespace) as connected:
        yield connected
    end_router(namespace)


@pytest.fixture(scope="module")
def svc(client: ray_route.RouteClient) -> Iterator[ray_route.Deployment]:
    """Three pods of service "svc" that all tests of a module may share: give uids of your own."""
    options = {"namespace": client.namespace, "service": "svc", "replicas": 3}
    with ray_route.deploy(Counter, **options) as deployment:
        yield deployment


@pytest.fixture
def u(svc: ray_route.Deployment) -> str:
    """A uid of service "svc" that no other test uses."""
    return unique_name()


@pytest.fixture
def deploy(client: ray_route.RouteClient) -> Iterator[Deploy]:
    """Deploys services that end with the test."""
    made: list[ray_route.Deployment] = []

    def make(cls: type = Counter, replicas: int = 3, **options: Any) -> ray_route.Deployment:
        service = options.pop("service", None) or unique_name()
        made.append(
            ray_route.deploy(
                cls, namespace=client.namespace, service=service, replicas=replicas, **options
            )
        )
        return made[-1]

    yield make
    for deployment in made:
        deployment.shutdown()


@pytest.fixture
def command() -> Iterator[Command]:
    made = Command()
    yield made
    try:
        eventually(lambda: not made.processes(), "no process left behind")
    finally:
        made.end()
