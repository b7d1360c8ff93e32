from __future__ import annotations

import pytest

from ray_route.config import RouteConfig
from ray_route.errors import ConfigError, UnsafeStoreError
from ray_route.store.connect import Store
from ray_route.store.keys import Keys
from ray_route.store.namespaces import open_namespace, read_seal, restore_meta, seal
from ray_route.store.scripts import plain_call


def test_every_opening_gets_the_same_options(store: Store, namespace: str):
    first = open_namespace(store, namespace, {"shards": 8, "ttl_s": 100.0, "margin_s": 5.0})
    assert first == RouteConfig(shards=8, ttl_s=100.0, margin_s=5.0)
    assert open_namespace(store, namespace, {"shards": 8, "ttl_s": 100.0, "margin_s": 5.0}) == first


def test_who_asks_for_nothing_gets_what_the_first_one_decided(store: Store, namespace: str):
    first = open_namespace(store, namespace, {"shards": 8, "pod_lease_s": 30.0})
    assert open_namespace(store, namespace, {}) == first


@pytest.mark.parametrize(
    ("option", "first", "later"),
    [
        ("shards", 8, 9),
        ("ttl_s", 100.0, 101.0),
        ("margin_s", 5.0, 4.0),
        ("pod_lease_s", 30.0, 10.0),
        ("heartbeat_s", 2.0, 1.0),
        ("staleness_s", 20.0, 10.0),
    ],
)
def test_what_leases_rest_on_is_fixed_at_first_use(
    store: Store, namespace: str, option: str, first: float, later: float
):
    opened = open_namespace(store, namespace, {option: first})
    with pytest.raises(ConfigError) as caught:
        open_namespace(store, namespace, {option: later})
    assert (caught.value.option, caught.value.namespace) == (option, namespace)
    assert f"{option}={first}" in str(caught.value)
    assert open_namespace(store, namespace, {option: first}) == opened


def test_an_invalid_option_is_refused_before_anything_is_written(store: Store, namespace: str):
    with pytest.raises(ConfigError, match="ttl"):
        open_namespace(store, namespace, {"ttl": 5})
    assert store.one(plain_call("EXISTS", Keys(namespace, 8).meta)) == 0


def test_data_in_another_layout_is_refused_and_left_alone(store: Store, namespace: str):
    meta = Keys(namespace, 8).meta
    store.one(plain_call("HSET", meta, "layout", "3", "shards", "8"))
    with pytest.raises(UnsafeStoreError, match="layout 3") as caught:
        open_namespace(store, namespace, {"shards": 8})
    assert caught.value.address == store.url.address
    assert namespace in str(caught.value)
    assert store.one(plain_call("HMGET", meta, "layout", "shards", "options")) == [b"3", b"8", None]


def test_a_namespace_is_sealed_only_if_nothing_was_lost_since_its_replay_began(
    store: Store, namespace: str
):
    keys, config = Keys(namespace, 8), RouteConfig(shards=8)
    store.one(restore_meta(keys, config, router=5, token=17))
    assert store.one(read_seal(keys)) is None
    assert store.one(seal(keys, 18, "server", "server")) == b"lost"
    assert store.one(read_seal(keys)) is None
    assert store.one(seal(keys, 17, "server", "server")) == b"ok"
    assert store.one(read_seal(keys)) == b"server"
    assert store.one(seal(keys, 17, "other", "other")) == b"lost"
    store.one(restore_meta(keys, config, router=5, token=19))
    store.one(plain_call("DEL", keys.meta))
    assert store.one(seal(keys, 19, "server", "server")) == b"lost"
    assert store.one(plain_call("EXISTS", keys.meta)) == 0
