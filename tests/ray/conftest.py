"""Services for tests on real Ray actors; each test cleans up what it made, by name."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
import ray
from commands import Command
from helpers import end_router, eventually, namespaces_with_routers, unique_name
from lives import Service
from services import Counter
from talkers import AsyncTalker, Talker

import ray_route

Deploy = Callable[..., ray_route.Deployment]


# Its router, and the pods of its service "svc", serve all modules that do not ask for their own.
COMMON = unique_name()
# What nobody ends is ended after so long: it fails nothing, and a module would wait for a minute.
_LEFT_S = 10.0


@pytest.fixture(scope="module", autouse=True)
def no_router_stays() -> Iterator[None]:
    """What a module leaves behind would take its share of the machine until the session's end."""
    others = {COMMON} | (namespaces_with_routers() if ray.is_initialized() else set())
    yield
    if not ray.is_initialized():
        return
    try:
        what = "this module's routers have ended"
        eventually(lambda: namespaces_with_routers() <= others, what, _LEFT_S)
    except pytest.fail.Exception:
        for namespace in namespaces_with_routers() - others:
            print(f"nobody has ended the router of {namespace}")
            with suppress(ValueError):
                end_router(namespace)


@contextmanager
def connected(namespace: str) -> Iterator[ray_route.RouteClient]:
    """Give a client on the Ray session's embedded server, and end the router afterwards."""
    with ray_route.connect(namespace) as client:
        yield client
    end_router(namespace)


@contextmanager
def deployed(client: ray_route.RouteClient) -> Iterator[ray_route.Deployment]:
    options = {"namespace": client.namespace, "service": "svc", "replicas": 3}
    with ray_route.deploy(Counter, **options) as deployment:
        yield deployment


@pytest.fixture(scope="session")
def common_client(ray_session: None) -> Iterator[ray_route.RouteClient]:
    with connected(COMMON) as client:
        yield client


@pytest.fixture(scope="session")
def common_svc(common_client: ray_route.RouteClient) -> Iterator[ray_route.Deployment]:
    with deployed(common_client) as deployment:
        yield deployment


@pytest.fixture(scope="session")
def talkers(common_client: ray_route.RouteClient) -> Iterator[dict[type, str]]:
    """Services of two talkers of each kind in the common namespace, by their class."""
    with ExitStack() as ends:
        for cls in (Talker, AsyncTalker):
            where = {"namespace": COMMON, "service": cls.__name__, "replicas": 2}
            ends.enter_context(ray_route.deploy(cls, **where))
        yield {cls: cls.__name__ for cls in (Talker, AsyncTalker)}


@pytest.fixture(scope="module")
def client(request: pytest.FixtureRequest, ray_session: None) -> Iterator[ray_route.RouteClient]:
    """A client of a namespace that modules share, or of the module's own if it is so marked."""
    if request.node.get_closest_marker("own_namespace"):
        with connected(unique_name()) as own:
            yield own
    else:
        yield request.getfixturevalue("common_client")


@pytest.fixture(scope="module")
def svc(
    request: pytest.FixtureRequest, client: ray_route.RouteClient
) -> Iterator[ray_route.Deployment]:
    """Three pods of service "svc" in the client's namespace: give uids of your own, end no pod."""
    if client.namespace == COMMON:
        yield request.getfixturevalue("common_svc")
    else:
        with deployed(client) as own:
            yield own


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
def service(client: ray_route.RouteClient, deploy: Deploy) -> Iterator[Service]:
    """Two pods of a service whose controller's process is frozen: tests are its lives."""
    found = Service(client, deploy(Counter, replicas=2))
    yield found
    os.kill(found.pid, signal.SIGKILL)  # its next life goes on


@pytest.fixture
def command() -> Iterator[Command]:
    made = Command()
    yield made
    try:
        eventually(lambda: not made.processes(), "no process left behind")
    finally:
        made.end()
