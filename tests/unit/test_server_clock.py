"""How late a server's clock may be: what is a step of it, and what is not."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from helpers import ManualClock
from hypothesis import given
from hypothesis import strategies as st

from ray_route.clock import now
from ray_route.config import RouteConfig
from ray_route.router.server_clock import ServerClock, ServerClocks
from ray_route.store.links import ANY_TIME_US

CONFIG = RouteConfig(ttl_s=300.0, margin_s=60.0)
HOUR_S = 3_600.0


@dataclass
class Server:
    """A server, and what a router believes of its clock."""

    ours: ManualClock = field(default_factory=ManualClock)
    offset_s: float = 1.7e9

    def __post_init__(self) -> None:
        self.believed = ServerClock(CONFIG, self.ours)

    def time_us(self) -> int:
        return int((self.ours() + self.offset_s) * 1e6)

    def ask(self, there_s: float = 0.0, back_s: float = 0.0) -> bool:
        """Ask for the time, by ways of so many seconds; say whether that showed a step."""
        asked_at = self.ours()
        self.ours.tick(there_s)
        answer = self.time_us()
        self.ours.tick(back_s)
        return self.believed.shows(answer, asked_at)

    def takes(self, latest_us: int | None = None) -> bool:
        """Say whether a script that is run now is let through."""
        latest = self.believed.latest_us() if latest_us is None else latest_us
        return self.time_us() <= latest


@pytest.fixture
def server() -> Server:
    made = Server()
    assert not made.ask()
    return made


def test_before_anything_is_known_any_time_will_do():
    assert ServerClock(CONFIG).latest_us() == ANY_TIME_US


def test_time_that_passes_is_no_step(server: Server):
    for _ in range(100):
        server.ours.tick(1)
        assert server.takes()
        assert not server.ask()


@pytest.mark.parametrize("there_s", [0.0, 50.0])
@pytest.mark.parametrize("back_s", [0.0, 50.0])
def test_an_answer_that_is_late_is_no_step(server: Server, there_s: float, back_s: float):
    for _ in range(20):
        assert not server.ask(there_s, back_s)
        assert server.takes()


def test_a_router_that_stood_still_sees_no_step(server: Server):
    server.ours.tick(HOUR_S)
    assert server.takes()
    assert not server.ask()


def test_a_script_that_lay_somewhere_is_refused_but_is_no_step(server: Server):
    latest_us = server.believed.latest_us()
    server.ours.tick(50)
    assert not server.takes(latest_us)
    assert not server.ask()
    assert server.takes()


def test_a_step_is_one_until_it_is_believed(server: Server):
    server.offset_s += HOUR_S
    assert not server.takes()
    for _ in range(3):
        assert server.ask()
        assert not server.takes()
    server.believed.believe(server.believed.stepped_to_s)
    assert server.takes()
    assert not server.ask()


def test_a_step_that_was_found_meanwhile_is_not_believed_with_an_earlier_one(server: Server):
    """What the first may have ended is written back while the second is found."""
    server.offset_s += HOUR_S
    assert server.ask()
    first = server.believed.stepped_to_s
    server.offset_s += HOUR_S
    assert server.ask()
    server.believed.believe(first)
    assert server.ask()


def test_a_second_step_before_the_first_is_believed_is_one_afterwards(server: Server):
    server.offset_s += HOUR_S
    assert server.ask()
    server.offset_s += HOUR_S
    server.believed.believe(server.believed.stepped_to_s)
    assert not server.takes()
    assert server.ask()


def test_a_step_that_shows_itself_by_a_slow_answer_is_one(server: Server):
    server.offset_s += HOUR_S
    assert server.ask(there_s=50, back_s=50)


def test_what_the_margin_covers_is_no_step_but_not_twice(server: Server):
    server.offset_s += 25
    assert server.takes()
    assert not server.ask()
    server.ours.tick(60)
    server.offset_s += 25
    assert not server.takes()
    assert server.ask()


def test_a_clock_that_goes_a_little_faster_is_followed(server: Server):
    for _ in range(2_000):
        server.ours.tick(1)
        server.offset_s += 0.001  # 1,000 ppm
        assert server.takes()
        assert not server.ask()


def test_a_step_back_is_taken_over_at_once_and_the_way_forward_is_a_step(server: Server):
    server.offset_s -= HOUR_S
    assert not server.ask()
    server.offset_s += HOUR_S
    assert not server.takes()
    assert server.ask()


def begun(passed_s: float, stepped_s: float = 0.0) -> Server:
    """A server as a router sees it that begins so long after the last one looked."""
    server = Server()
    looked_us = server.time_us()
    server.ours.tick(passed_s)
    server.believed.showed(looked_us)
    server.offset_s += stepped_s
    return server


def test_a_router_that_begins_goes_by_what_the_last_one_saw():
    server = begun(3)
    assert server.takes()
    assert not server.ask()


def test_a_router_that_begins_sees_a_step_since_the_last_one():
    server = begun(3, HOUR_S)
    assert not server.takes()
    assert server.ask()


def test_a_router_that_begins_long_after_the_last_one_takes_no_time_for_granted():
    server = begun(HOUR_S)
    assert not server.takes()
    assert server.ask()


def test_what_is_known_is_not_replaced_by_what_an_earlier_router_saw(server: Server):
    server.believed.showed(server.time_us() + int(HOUR_S * 1e6))
    server.offset_s += HOUR_S
    assert not server.takes()


STEPS = st.one_of(st.just(0.0), st.floats(-200, 200), st.floats(-20, 20))
EVENTS = st.lists(st.tuples(st.floats(0.1, 40), STEPS, st.floats(0, 14), st.floats(0, 14)))


@pytest.mark.slow
@given(EVENTS)
def test_no_script_is_let_through_that_finds_a_link_ended_within_its_lease(events: list):
    """Whoever got a lease since the router last looked before it, within a link's life."""
    server = Server()
    given: list[tuple[float, float]] = []
    for passes_s, step_s, there_s, back_s in events:
        server.offset_s += step_s
        if server.ask(there_s, back_s):
            given.clear()  # all leases' links are written back
            server.believed.believe(server.believed.stepped_to_s)
        given.append((server.ours(), server.offset_s))
        server.ours.tick(passes_s)
        held = [offset for at, offset in given if server.ours() - at < CONFIG.ttl_s]
        if server.takes() and held:
            assert server.offset_s - min(held) <= CONFIG.margin_s


def test_the_clock_of_a_server_that_nobody_sees_is_believed_by_no_other_servers_recovery():
    clocks = ServerClocks(CONFIG, 2, is_cluster=True)
    for shard in (0, 1):
        assert not clocks.of(shard).shows(0, now())
        assert clocks.of(shard).shows(int(HOUR_S * 1e6), now())
    clocks.believe(clocks.steps([1]))
    assert [clocks.of(shard).stepped_to_s is None for shard in (0, 1)] == [False, True]
