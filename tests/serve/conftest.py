"""One Serve for all tests of this folder; applications end with the test or module they are for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers import end_router, eventually, unique_name
from ray import serve
from ray.serve._private.router import SingletonThreadRouter
from serveapp import App, Run, runner

import ray_route
from ray_route.store.embedded import free_port


@pytest.fixture(scope="package")
def serve_url(ray_session: None) -> Iterator[str]:
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    stop_routers()


def stop_routers() -> None:
    """End the loop of this process's handles, which Serve leaves running; no public call does.

    Whatever it asked of Ray after Ray's shutdown would end this process with status 1, and no
    outcome of any test would be told.
    """
    loop = SingletonThreadRouter._asyncio_loop
    if loop is None:
        return
    SingletonThreadRouter._asyncio_loop = None
    loop.call_soon_threadsafe(loop.stop)
    eventually(lambda: not loop.is_running(), "the loop of Serve's routers ends")


@pytest.fixture(scope="package")
def directory(serve_url: str) -> Iterator[ray_route.RouteClient]:
    """A client of the namespace in which all of Serve's sessions are."""
    namespace = unique_name()
    with ray_route.connect(namespace) as client:
        yield client
    end_router(namespace)


@pytest.fixture
def run(serve_url: str, directory: ray_route.RouteClient) -> Iterator[Run]:
    """Run applications that end with the test."""
    yield from running(serve_url, directory)


@pytest.fixture(scope="module")
def run_for_module(serve_url: str, directory: ray_route.RouteClient) -> Iterator[Run]:
    yield from running(serve_url, directory)


def running(serve_url: str, directory: ray_route.RouteClient) -> Iterator[Run]:
    made: list[str] = []
    yield runner(serve_url, directory, made)
    for name in made:
        serve.delete(name, _blocking=False)


@pytest.fixture(scope="package")
def chat(serve_url: str, directory: ray_route.RouteClient) -> App:
    """Four replicas that all tests share: give sessions of your own."""
    made: list[str] = []
    return runner(serve_url, directory, made)()
