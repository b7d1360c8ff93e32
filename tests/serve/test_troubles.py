"""What sessions live through: outages of the store, long silence, wrong configuration."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
from helpers import end_router, eventually, unique_name
from serveapp import App, Run, sessions

import ray_route
from ray_route.store.embedded import EmbeddedServer

pytestmark = pytest.mark.slow

TTL_S = 7.0


@pytest.fixture(scope="module")
def frail(run_for_module: Run) -> Iterator[tuple[App, EmbeddedServer]]:
    """Two replicas on a store of their own, with short lives of links and leases."""
    namespace = unique_name()
    options = {"ttl_s": TTL_S, "margin_s": 1.0, "pod_lease_s": 3.0, "staleness_s": 3.0}
    with EmbeddedServer() as server:
        where = {"namespace": namespace, "redis_url": server.url}
        app = run_for_module(replicas=2, router={**where, "patience_s": 1.5, **options})
        # What starts may take longer than a request's patience.
        eventually(lambda: answers(app, "first"), "the replicas have joined")
        with ray_route.connect(namespace, server.url) as app.client:
            yield app, server
        end_router(namespace)


def test_a_session_in_use_keeps_its_home_and_a_forgotten_one_does_not(
    frail: tuple[App, EmbeddedServer],
) -> None:
    app, _ = frail
    used, forgotten = sessions(2)
    app.homes([used, forgotten])
    link = app.client.get_linked_pod_not_cache(used, app.service)

    def forgotten_has_ended() -> bool:
        app.say(used)  # by the near cache, which does not lengthen the link's life
        return app.client.get_linked_pod_not_cache(forgotten, app.service) is None

    eventually(forgotten_has_ended, "an unused link ends", 3 * TTL_S)
    assert app.client.get_linked_pod_not_cache(used, app.service) == link
    eventually(
        lambda: sum(pod.load for pod in app.client.pods(app.service).values()) == 1,
        "replicas forget what they do not hold",
    )


def test_an_outage_of_the_store_moves_nobody_and_fails_fresh_sessions_in_time(
    frail: tuple[App, EmbeddedServer],
) -> None:
    app, server = frail
    names = sessions(20)
    homes = app.homes(names)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        assert app.homes(names) == homes, "known homes need no store"
        began = time.monotonic()
        with pytest.raises(ray_route.RouterUnavailableError, match="patience_s"):
            app.say(sessions(1)[0])
        assert 1.0 < time.monotonic() - began < 30, "a request waits for so long"
        # As long as the leases of all replicas.
        eventually(lambda: not answers(app, names[0]), "near caches are believed no more")
    finally:
        os.kill(server.pid, signal.SIGCONT)
    fresh = sessions(4)
    eventually(lambda: answers(app, fresh[0]), "fresh sessions get homes again")
    assert app.homes(names) == homes
    assert len(app.alive()) == 2


def answers(app: App, name: str) -> bool:
    try:
        return bool(app.say(name))
    except ray_route.RouteError:
        return False


def test_a_wrong_option_is_told_to_every_request_of_a_session(run: Run) -> None:
    app = run(replicas=1, router={"when_full": "explode"})
    with pytest.raises(ray_route.ConfigError, match="when_full"):
        app.say("somebody")
    assert app.handle.say.remote().result(timeout_s=10)["count"] == 1
