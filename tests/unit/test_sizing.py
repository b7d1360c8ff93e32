"""How many pods a service needs: more at once, fewer only after a while, and no flapping."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest
from helpers import ManualClock
from hypothesis import given
from hypothesis import strategies as st

from ray_route import InvalidInputError
from ray_route.controller.sizing import Judge, Seen, Verdict
from ray_route.policies import Autoscale, check_tolerance, sized

LOOK_S = 2.0
BY_UIDS = Autoscale(2, 8, 100, None, 60)
FAR = 1e6


@dataclass
class Service:
    """A service whose load is spread evenly, and whose pods come and go as it is judged."""

    policy: Autoscale
    pods: int
    clock: ManualClock = field(default_factory=ManualClock)
    judge: Judge = field(init=False)

    def __post_init__(self) -> None:
        self.judge = Judge(self.clock)

    def look(self, load: float) -> Verdict:
        self.clock.tick(LOOK_S)
        seen = Seen(dict.fromkeys(range(self.pods), load / self.pods))
        verdict = self.judge.judge(self.policy, seen)
        self.pods += verdict.more - (verdict.leave is not None)
        return verdict

    def looks(self, load: float, seconds: float) -> list[Verdict]:
        return [self.look(load) for _ in range(math.ceil(seconds / LOOK_S))]


def test_more_are_wanted_at_once_as_many_as_are_needed() -> None:
    service = Service(BY_UIDS, 2)
    assert service.look(200) == Verdict(2, "200 uids need 2 pods of 100 each")
    assert service.look(201).more == 1
    assert (service.look(750).more, service.pods) == (5, 8)
    last = service.look(5_000)
    assert (last.more, last.desired) == (0, 8)
    assert last.why == "5000 uids need more than 8 pods of 100 each, within 2 to 8"


def test_fewer_are_wanted_one_by_one_after_a_while_and_with_some_room() -> None:
    service = Service(BY_UIDS, 2)
    service.look(600)
    early = service.looks(400, BY_UIDS.down_s - LOOK_S)
    assert all(verdict.leave is None for verdict in early)
    assert early[-1].why.endswith("; fewer once 60 s have needed no more")
    later = service.looks(400, 3 * BY_UIDS.down_s)
    assert service.pods == 5, "five have some room, and four have none"
    assert {verdict.leave for verdict in later} == {None, 5}
    service.looks(0, 3 * BY_UIDS.down_s)
    assert service.pods == BY_UIDS.least


@given(
    st.lists(st.floats(0, 1_000), min_size=1, max_size=6),
    st.integers(1, 2),
    st.sampled_from([Autoscale(1, 9, 100, None, 40.0), Autoscale(1, 9, None, 12.5, 40.0)]),
)
def test_a_load_that_comes_again_within_the_while_makes_nothing_flap(
    sawtooth: list[float], looks_each: int, policy: Autoscale
) -> None:
    """Any pattern that is shorter than `down_s`: after its first turn the pods stay as they are."""
    period_s = len(sawtooth) * looks_each * LOOK_S
    policy = replace(policy, down_s=period_s)
    service = Service(policy, 9)
    for _ in range(12):  # till all that are too many have gone
        teeth = [service.look(load) for load in sawtooth for _ in range(looks_each)]
    after = [service.look(load) for _ in range(3) for load in sawtooth for _ in range(looks_each)]
    stays = [verdict for verdict in [*teeth, *after] if verdict.more or verdict.leave is not None]
    assert not stays
    assert service.pods >= min(9, math.ceil(max(sawtooth) / policy.target - 1e-6))


@given(st.lists(st.floats(0, 1_500), max_size=60), st.integers(0, 60), st.integers(0, 3))
def test_what_holds_of_any_load(loads: list[float], forgets: int, closed: int) -> None:
    clock, there, told = ManualClock(), {0, 1}, list[tuple[float, float]]()
    judge, policy = Judge(clock), replace(BY_UIDS, down_s=20.0)
    for number, load in enumerate(loads):
        clock.tick(LOOK_S)
        if number == forgets:
            judge.forget()
            told.clear()
        told.append((clock(), load))
        seen = Seen({pod: load / len(there) for pod in there}, closed)
        verdict = judge.judge(policy, seen)
        limit = policy.most - closed
        if verdict.leave is not None:
            lately = [each for at, each in told if at >= clock() - policy.down_s]
            assert told[0][0] <= clock() - policy.down_s, "it has seen enough"
            assert max(lately) <= 0.9 * policy.target * (len(there) - 1) + 1e-6
            assert policy.least < len(there)
            there.discard(verdict.leave)
        else:
            there |= set(range(len(there), len(there) + verdict.more))
        assert policy.least <= len(there) <= limit
        assert len(there) >= min(limit, math.ceil(load / policy.target - 1e-6)), "at once"
        if verdict.more or verdict.leave is not None:
            assert verdict.desired >= policy.least


def test_the_emptiest_goes_and_first_one_that_has_not_come() -> None:
    clock = ManualClock()
    judge = Judge(clock)
    for loads, leaves in [
        ({0: 90, 1: 3, 2: 40}, 1),
        ({0: 0, 1: 90, 2: 5}, 0),
        ({0: 9, 1: 9}, None),
    ]:
        judge.judge(BY_UIDS, Seen(loads))
        clock.tick(BY_UIDS.down_s)
        assert judge.judge(BY_UIDS, Seen(loads)).leave == leaves
    clock.tick(BY_UIDS.down_s)
    assert judge.judge(BY_UIDS, Seen({3: 5, 4: 5, 7: 5})).leave == 7


def test_more_than_the_most_go_without_delay_and_closed_ones_are_left_alone() -> None:
    judge = Judge(ManualClock())
    assert judge.judge(BY_UIDS, Seen(dict.fromkeys(range(9), FAR))).leave == 8
    full = judge.judge(BY_UIDS, Seen(dict.fromkeys(range(5), FAR), closed=3))
    assert (full.more, full.leave, full.desired) == (0, None, 8)
    assert full.why.endswith("3 closed ones are left alone")
    assert judge.judge(BY_UIDS, Seen({}, closed=8)).more == 0


def test_no_more_are_made_while_some_do_not_start() -> None:
    judge = Judge(ManualClock())
    stuck = judge.judge(BY_UIDS, Seen({0: 500, 1: 0, 2: 0}, stuck=[2, 1]))
    assert (stuck.more, stuck.desired) == (0, 3)
    assert stuck.why.endswith("no more are made while pods [1, 2] do not start")
    assert judge.judge(BY_UIDS, Seen({0: 500}, stuck=[1])).more == 1, "but the least"


def test_what_a_leaving_pod_still_has_is_counted() -> None:
    judge = Judge(ManualClock())
    assert judge.judge(BY_UIDS, Seen({0: 100, 1: 90}, closed=1, leaving=40)).more == 1


@pytest.mark.parametrize("total", [math.inf, 1e308])
def test_loads_of_any_size_need_the_most(total: float) -> None:
    assert Judge(ManualClock()).judge(BY_UIDS, Seen({0: total, 1: total})).desired == 8


REFUSED: Iterable[tuple[object, ...]] = [
    (0, None, None, None),
    (True, None, None, None),
    ((0, 2), 5, None, None),
    ((3, 2), 5, None, None),
    ((1, 2, 3), 5, None, None),
    ((1, 2), None, None, None),
    ((1, 2), 5, 5, None),
    ((1, 2), 0, None, None),
    ((1, 2), math.nan, None, None),
    ((1, 2), None, math.inf, None),
    ((1, 2), None, "5", None),
    ((1, 2), 5, None, 0),
    (2, 5, None, None),
    (2, None, 5, None),
    (2, None, None, 5),
]


@pytest.mark.parametrize("given", REFUSED)
def test_what_can_never_be_is_refused(given: tuple[object, ...]) -> None:
    with pytest.raises(InvalidInputError):
        sized(*given)


def test_what_is_given_is_taken() -> None:
    assert sized(3, None, None, None) == (3, None)
    assert sized((1, 4), 500, None, None) == (1, Autoscale(1, 4, 500.0, None, 300.0))
    assert sized([2, 2], None, 0.5, 9) == (2, Autoscale(2, 2, None, 0.5, 9.0))
    assert (check_tolerance("rebalance", None), check_tolerance("rebalance", 0.2)) == (None, 0.2)
    with pytest.raises(InvalidInputError):
        check_tolerance("rebalance", 0)
