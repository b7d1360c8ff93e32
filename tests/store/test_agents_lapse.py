"""What an agent takes for a yes when its lease has lapsed; its store is real, its router played."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from ray_route.config import RouteConfig
from ray_route.model import RoutingState
from ray_route.pod import terms
from ray_route.pod.holdings import Holdings
from ray_route.pod.lease_renewal import LeaseRenewal
from ray_route.pod.own_record import Claimed, OwnRecord
from ray_route.pod.pod_lease import PodLease
from ray_route.protocol.commands import Word
from ray_route.runtime.waiting import Operation
from ray_route.store.connect import Store
from ray_route.store.keys import Keys
from ray_route.store.scripts import plain_call, script_call

S = "chat"


@dataclass
class Agent:
    """An agent without its threads; `word` is what the router says."""

    store: Store
    keys: Keys
    config: RouteConfig
    word: Callable[[], tuple[Word, int]] = lambda: (Word.AGAIN, 0)
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.held = Holdings(0, PodLease(0, self.config.pod_lease_s, 0.0), 60.0)
        self.commands = SimpleNamespace(router=0, under=0, state=None)
        namespace: Any = SimpleNamespace(
            store=self.store, keys=self.keys, config=self.config, name="ns", node="", ask=self.ask
        )
        self.record = OwnRecord(namespace, S, actor="")
        serving: Any = self
        self.renewal = LeaseRenewal(
            namespace, self.record, serving, lambda: 0.0, threading.Event(), None
        )

    @property
    def address(self) -> tuple[str, int, int]:
        return S, self.held.pod, self.held.lease.incarnation

    def claim(self) -> None:
        claimed = self.record.claim(0, RoutingState.READY)
        assert isinstance(claimed, Claimed)
        lease = PodLease(claimed.incarnation, self.config.pod_lease_s, claimed.asked_at)
        terms.begin(self.held, lease, claimed.pod)
        self.renewal.begin(claimed)

    def renew(self) -> None:
        assert self.renewal.renew(RoutingState.READY) is None, "its life goes on"

    def ask(self, _: str, *args: Any) -> Operation[tuple[Word, int]]:
        yield from ()
        self.asked.append(args)
        return self.word()

    def serves(self) -> bool:
        return self.held.lease.serves()

    def new_router(self) -> int:
        return int(self.store.one(script_call("claim_router", [self.keys.meta], [0])))

    def lose_the_table(self) -> None:
        self.store.one(plain_call("DEL", self.keys.pods(S)))


def joined(store: Store, keys: Keys, **options: Any) -> Agent:
    store.one(plain_call("HSET", keys.meta, "sealed", "this-server"))
    agent = Agent(store, keys, RouteConfig(pod_lease_s=30.0, **options))
    agent.new_router()
    agent.claim()
    agent.renew()
    assert agent.serves()
    return agent


@pytest.fixture
def agent(store: Store, namespace: str) -> Agent:
    return joined(store, Keys(namespace, 16))


def test_a_yes_of_a_router_older_than_the_youngest_heard_of_is_none(agent: Agent) -> None:
    older = agent.new_router()
    youngest = agent.new_router()
    agent.renewal._lapse("a test")
    agent.word = lambda: (Word.SERVE, older)
    agent.renew()
    assert not agent.serves()
    agent.word = lambda: (Word.SERVE, youngest)
    agent.renew()
    assert agent.serves()


def test_so_it_is_where_commands_came_from_a_younger_one(agent: Agent) -> None:
    stored = agent.new_router()
    agent.commands.router = stored + 1  # Redis may have lost that it began
    agent.renewal._lapse("a test")
    agent.word = lambda: (Word.SERVE, stored)
    agent.renew()
    assert not agent.serves()


def test_a_yes_counts_in_the_lapse_that_it_was_asked_in(agent: Agent) -> None:
    router = agent.new_router()
    agent.renewal._lapse("a test")

    def yes_after_another_lapse() -> tuple[Word, int]:
        terms.lapse(agent.held)
        return Word.SERVE, router

    agent.word = yes_after_another_lapse
    agent.renew()
    assert not agent.serves()


def test_whoever_vouches_must_span_the_renewal_before_redis_lost_the_record(agent: Agent) -> None:
    before = agent.renewal._under
    agent.lose_the_table()
    younger = agent.new_router()
    agent.renew()
    assert agent.serves(), "its lease runs, and nobody can have ended its life"
    agent.renewal._lapse("a test")
    agent.word = lambda: (Word.SERVE, younger)
    agent.renew()
    (_, _, under, heard), *_ = agent.asked
    assert (under, heard) == (before, younger)


@pytest.mark.parametrize("fast", [True, False])
def test_a_lost_record_is_a_lapse_where_ray_is_believed(
    store: Store, namespace: str, fast: bool
) -> None:
    """With `fast_failover` a life may have been ended without a lease of silence."""
    agent = joined(store, Keys(namespace, 16), fast_failover=fast)
    agent.lose_the_table()
    agent.renew()
    assert agent.serves() is not fast


def test_a_lease_that_has_run_out_is_a_lapse_though_it_can_be_renewed(agent: Agent) -> None:
    agent.held.lease.end()
    agent.renew()
    assert agent.renewal.lapsed


def test_a_life_that_was_ended_is_over_and_it_is_said_who_says_so(agent: Agent) -> None:
    agent.renewal._lapse("a test")
    agent.word = lambda: (Word.ENDED, 0)
    assert agent.renewal.renew(RoutingState.READY) == "the router says that its life was ended"
    agent.record.resign(agent.address)
    assert agent.renewal.renew(RoutingState.READY) == "the directory says gone"
