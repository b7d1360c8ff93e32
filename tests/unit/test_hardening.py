from __future__ import annotations

import pytest
from helpers import ManualClock
from test_admission_rules import Pod

from ray_route.client.coalescer import Coalescer
from ray_route.config import RouteConfig
from ray_route.errors import ConfigError
from ray_route.model import Life, PodRecord, RoutingState
from ray_route.pod.admission import Told, Verdict
from ray_route.pod.next_work import Kind
from ray_route.router.failure_detector import HeartbeatMonitor
from ray_route.store.url import parse_url

SECRET = "hunter2"


@pytest.mark.parametrize("url", [f"redis://user:12#{SECRET}@host", "redis://host/0#x"])
def test_a_fragment_is_refused(url: str):
    """An unquoted # in a password would make its beginning the host and port."""
    with pytest.raises(ConfigError):
        parse_url(url)


@pytest.mark.parametrize("option", ["ttl_s", "margin_s", "pod_lease_s", "staleness_s"])
def test_a_duration_must_be_finite(option: str):
    with pytest.raises(ConfigError) as caught:
        RouteConfig.of({option: float("inf")})
    assert caught.value.option == option


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tolerance_must_be_a_number_that_compares(value: float):
    with pytest.raises(ConfigError) as caught:
        RouteConfig.of({"load_tolerance": value})
    assert caught.value.option == "load_tolerance"


def test_a_ttl_must_be_at_least_a_millisecond():
    with pytest.raises(ConfigError) as caught:
        RouteConfig(ttl_s=0.0005, margin_s=0.0001)
    assert caught.value.option == "ttl_s"


def test_a_call_that_runs_counts_when_its_uid_gets_a_new_epoch(clock: ManualClock):
    pod = Pod(clock)
    pod.enter()
    assert pod.confirm(epoch=101) is Told.WAIT
    pod.release(epoch=101)
    assert pod.take() == []
    pod.admission.leave("u")
    assert pod.take() == [("u", 100, Kind.LOSE)]


def test_a_release_that_is_voided_while_it_waits_is_no_error(clock: ManualClock):
    pod = Pod(clock)
    pod.enter()
    pod.release()
    assert pod.verdict() is Verdict.REFUSE
    pod.releases.follow(2)
    clock.tick(4)
    pod.releases.tick()
    assert pod.held.outcomes.take() == []
    assert pod.verdict() is Verdict.ADMIT


@pytest.mark.parametrize("answers", [{"a": 1}, None])
def test_nobody_waits_for_an_answer_that_will_not_come(answers):
    sent = []

    def send(_, __, done):
        sent.append(done)

    coalescer = Coalescer(lambda work: work(), send, lambda *_: None)
    batches = [coalescer.join("chat", "first")]
    batches[0].send()
    batches += [coalescer.join("chat", uid) for uid in ("a", "b", "c")]
    sent[0](lambda: {"first": 0})
    sent[1](lambda: answers)
    assert all(load.answers.done() for load in batches)


def test_time_in_which_a_pod_was_absent_is_not_silence():
    pod = PodRecord(0, 7, RoutingState.READY, Life.ALIVE, 0.0, "n", "p", "a", 1_000)
    monitor = HeartbeatMonitor(lease_s=10.0, max_gap_s=3.0)
    monitor.look(0.0, [("chat", pod)])
    for at in range(1, 20):
        monitor.look(float(at), [])
    assert monitor.look(20.0, [("chat", pod)]) == []
