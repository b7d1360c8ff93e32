from __future__ import annotations

import pickle

import pytest

from ray_route.config import RouteConfig
from ray_route.errors import ConfigError
from ray_route.model import Life, PodRecord, RoutingState

POD = PodRecord(4, 7, RoutingState.READY, Life.ALIVE, 0.0, "node", "process", "actor", 1)


def refused(**options: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        RouteConfig.of(options)
    return caught.value


def test_the_defaults_are_valid_and_are_the_documented_ones():
    config = RouteConfig.of({})
    assert config == RouteConfig()
    assert (config.ttl_s, config.margin_s, config.shards) == (300, 60, 256)
    assert (config.heartbeat_s, config.pod_lease_s, config.staleness_s) == (1, 10, 10)


def test_the_longest_lease_ends_a_margin_before_the_ttl():
    assert RouteConfig(ttl_s=300, margin_s=60).lease_s == 240


@pytest.mark.parametrize("margin_s", [300.0, 300.001, 1e9])
def test_a_margin_that_leaves_no_lease_is_refused(margin_s: float):
    assert refused(ttl_s=300.0, margin_s=margin_s).option == "margin_s"


def test_a_margin_just_below_the_ttl_is_accepted():
    assert RouteConfig.of({"ttl_s": 300, "margin_s": 299.9}).lease_s == pytest.approx(0.1)


@pytest.mark.parametrize("option", ["ttl_s", "margin_s", "heartbeat_s", "pod_lease_s"])
@pytest.mark.parametrize("value", [0, -1, -0.5, float("nan")])
def test_a_duration_must_be_positive(option: str, value: float):
    assert refused(**{option: value}).option == option


@pytest.mark.parametrize("option", ["shards", "router_cache_size", "near_cache_size"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_size_must_be_at_least_1(option: str, value: int):
    assert refused(**{option: value}).option == option
    assert getattr(RouteConfig.of({option: 1}), option) == 1


@pytest.mark.parametrize("option", ["shards", "near_cache_size"])
def test_a_size_must_be_an_integer(option: str):
    assert refused(**{option: 2.5}).option == option


@pytest.mark.parametrize("option", ["ttl_s", "shards", "heartbeat_s", "load_tolerance"])
@pytest.mark.parametrize("value", ["10", None, True, [1]])
def test_a_number_must_be_a_number(option: str, value: object):
    assert refused(**{option: value}).option == option


def test_a_duration_may_be_a_whole_number():
    assert RouteConfig.of({"ttl_s": 600}).ttl_s == 600


def test_a_pod_must_be_able_to_miss_two_heartbeats():
    assert refused(heartbeat_s=4.0, pod_lease_s=11.9, staleness_s=99.0).option == "heartbeat_s"
    RouteConfig(heartbeat_s=4.0, pod_lease_s=12.0, staleness_s=99.0)


def test_the_watch_must_be_able_to_miss_two_heartbeats():
    assert refused(heartbeat_s=1.0, staleness_s=2.9).option == "staleness_s"
    RouteConfig(heartbeat_s=1.0, staleness_s=3.0)


def test_a_tolerance_must_not_be_negative():
    assert refused(load_tolerance=-0.1).option == "load_tolerance"
    RouteConfig(load_tolerance=0)


def test_an_unknown_option_is_refused_with_the_known_ones():
    error = refused(ttl=10)
    assert error.option == "ttl"
    assert "ttl_s" in str(error)


@pytest.mark.parametrize("placement", ["fastest", "", 3])
def test_an_unknown_placement_is_refused(placement: object):
    assert refused(placement=placement).option == "placement"


@pytest.mark.parametrize("placement", ["least_loaded", "round_robin", "prefer_node", "together"])
def test_a_known_placement_makes_a_strategy(placement: str):
    assert RouteConfig(placement=placement).strategy()([POD], {4: 0.0}, "u", None) == 4


def test_a_placement_of_the_users_own_is_used_as_it_is():
    def mine(*_: object) -> int:
        return 9

    assert RouteConfig(placement=mine).strategy() is mine


def test_the_load_tolerance_reaches_the_strategy():
    other = PodRecord(5, 7, RoutingState.READY, Life.ALIVE, 0.0, "node", "process", "actor", 1)
    place = RouteConfig(load_tolerance=2.0).strategy()
    assert {place([POD, other], {4: 0.0, 5: 2.0}, "u", None) for _ in range(4)} == {4, 5}


def test_only_options_with_another_value_differ():
    config = RouteConfig(ttl_s=100.0, placement=len)
    assert config.differing({"ttl_s": 100, "shards": 8, "margin_s": 60.0}) == ["shards"]
    # A callable is another object after a process border.
    assert config.differing({"placement": max}) == []
    assert config.differing({"placement": "round_robin"}) == ["placement"]


def test_a_config_survives_pickling():
    config = RouteConfig(ttl_s=100.0, shards=8)
    assert pickle.loads(pickle.dumps(config)) == config
