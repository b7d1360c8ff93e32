"""What a Serve replica does when it is stopped, without Serve."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from helpers import eventually

from ray_route.serve import replica_agent
from ray_route.serve.replica_options import ReplicaOptions
from ray_route.serve.serves_replica import GENERATOR, HTTP, METHOD, ServesReplica
from ray_route.store.url import parse_url


def test_serve_waits_until_the_replica_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    may_leave = threading.Event()
    agent = Mock(stop=lambda: may_leave.wait(30))
    monkeypatch.setattr(replica_agent, "ray", Mock())
    monkeypatch.setattr(replica_agent, "PodAgent", lambda *_, **__: agent)
    serves = SimpleNamespace(_shutting_down=False)

    async def shut_down() -> None:
        serves._shutting_down = True

    serves.perform_graceful_shutdown = shut_down
    replica: Any = SimpleNamespace(_replica_impl=serves, get_num_ongoing_requests=lambda: 0)
    leaving = replica_agent.ReplicaAgent(
        replica,
        replica_agent.ServiceAddress("n", "s", parse_url("redis://127.0.0.1:1/0")),
        ReplicaOptions(),
    )
    eventually(lambda: leaving._joined, "it has joined")

    async def stop() -> None:
        stopping = asyncio.create_task(serves.perform_graceful_shutdown())
        await asyncio.to_thread(eventually, lambda: agent.set_routing_state.called, "it leaves")
        assert not stopping.done()
        may_leave.set()
        await asyncio.wait_for(stopping, 10)

    asyncio.run(stop())


def test_sessions_that_are_told_while_a_replica_joins_count_once_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has_claimed = threading.Event()
    told: list[dict[str, Any]] = []
    agent = Mock(start=lambda: has_claimed.wait(60), use=lambda links: told.append(dict(links)))
    monkeypatch.setattr(replica_agent, "ray", Mock())
    monkeypatch.setattr(replica_agent, "PodAgent", lambda *_, **__: agent)
    serves = SimpleNamespace(_shutting_down=False, perform_graceful_shutdown=Mock())
    replica: Any = SimpleNamespace(_replica_impl=serves, get_num_ongoing_requests=lambda: 0)
    address = replica_agent.ServiceAddress("n", "s", parse_url("redis://127.0.0.1:1/0"))
    joining = replica_agent.ReplicaAgent(replica, address, ReplicaOptions())
    early: dict[str, Any] = {"a": Mock(), "b": Mock()}
    joining.use(early)
    assert told == [], "nothing is claimed yet"
    has_claimed.set()
    eventually(lambda: told == [early], "what was told early counts")
    joining.use({"c": Mock()})
    assert [set(links) for links in told] == [{"a", "b"}, {"c"}]
    serves._shutting_down = True  # its thread ends


def test_a_ray_whose_replicas_have_other_names_is_told_and_served(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_agent, "ray", Mock())
    monkeypatch.setattr(replica_agent, "PodAgent", Mock())
    wrapper = SimpleNamespace(**{METHOD: 1, HTTP: 1, "_user_code_event_loop": 1})
    serves = SimpleNamespace(_shutting_down=True, _wrap_request=1, _user_callable_wrapper=wrapper)
    replica: Any = SimpleNamespace(_replica_impl=serves, get_num_ongoing_requests=lambda: 0)
    assert ServesReplica(replica).missing == ["_semaphore", GENERATOR]
    address = replica_agent.ServiceAddress("n", "s", parse_url("redis://127.0.0.1:1/0"))
    replica_agent.ReplicaAgent(replica, address, ReplicaOptions())
    assert "have no _semaphore, call_user_generator" in caplog.text
    assert serves._wrap_request == 1, "it is left as it is"
