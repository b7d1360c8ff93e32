from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from servers import ClusterServers
from shardbench import Shard

from ray_route.errors import ConfigError, StoreUnavailableError
from ray_route.model import RoutingState
from ray_route.store.connect import AsyncStore, Store
from ray_route.store.embedded import EmbeddedServer, free_port
from ray_route.store.keys import Keys
from ray_route.store.pods import Identity, PodCalls, parse_table
from ray_route.store.scripts import plain_call
from ray_route.store.url import StoreUrl, parse_url


@pytest.mark.parametrize("verb", ["remove", "remove_if"])
def test_a_removal_in_a_links_last_millisecond_is_no_error(shard: Shard, verb: str):
    """In that millisecond PTTL is 0 and the key still there."""
    uids = [f"u{number}" for number in range(400)]
    args = [["1"]] if verb == "remove_if" else []
    for _ in range(3):
        shard.do("set", uids, ["1:7"] * len(uids), persistent=False)
        ending = [plain_call("PEXPIRE", shard.key(uid), 4) for uid in uids]
        removals = [shard.call(verb, [uid], *args, after_s=5) for uid in uids]
        replies = shard.store.run([*ending, *removals])
        assert [reply for reply in replies if isinstance(reply, Exception)] == []


class Odd(float):
    """A float that prints itself as numpy's do."""

    def __repr__(self) -> str:
        return f"np.float64({float(self)})"


@pytest.mark.parametrize("load", [Odd(2.5), True, 2])
def test_a_load_of_any_numeric_type_leaves_the_table_readable(store: Store, namespace: str, load):
    pods = PodCalls(Keys(namespace, 1))
    who = Identity("chat", 0, "process", "node", "actor")
    _, incarnation, *_ = store.one(pods.claim(who, RoutingState.READY))
    store.one(pods.renew(who, int(incarnation), load, RoutingState.READY, 0, lapsed=False))
    assert parse_table(store.one(pods.table("chat")))[0].load == float(load)


def _one(url: StoreUrl) -> None:
    Store(url).one(plain_call("GET", "k"))


def _one_async(url: StoreUrl) -> None:
    async def get() -> None:
        store = AsyncStore(url)
        try:
            await store.one(plain_call("GET", "k"))
        finally:
            await store.close()

    asyncio.run(get())


both = pytest.mark.parametrize("one", [_one, _one_async])


@both
def test_a_cluster_that_is_down_is_unavailable(one):
    with pytest.raises(StoreUnavailableError):
        one(parse_url(f"redis+cluster://:pw@127.0.0.1:{free_port()}"))


@pytest.mark.slow
@pytest.mark.needs_valkey
@both
def test_a_cluster_that_refuses_the_password_is_a_config_error(one):
    with ClusterServers("valkey", masters=1) as cluster:
        port = cluster.nodes[0].port
        with pytest.raises(ConfigError) as caught:
            one(parse_url(f"redis+cluster://:never-show-this@127.0.0.1:{port}"))
    assert "never-show-this" not in str(caught.value)


@both
def test_a_sentinel_that_is_down_is_unavailable_within_seconds(one):
    begun = time.monotonic()
    with pytest.raises(StoreUnavailableError) as caught:
        one(parse_url(f"redis+sentinel://:pw@127.0.0.1:{free_port()}/svc"))
    assert time.monotonic() - begun < 5
    assert len(str(caught.value)) < 500


def test_a_servers_folder_may_have_any_name(tmp_path: Path):
    folder = tmp_path / 'a "b" c\\d'
    folder.mkdir()
    with EmbeddedServer(folder=folder) as server:
        store = Store(parse_url(server.url))
        store.one(plain_call("SET", "k", "v"))
        store.close()
    assert list(folder.iterdir())


@pytest.mark.parametrize("password", ["two words", 'a"b', "a\\b", "#x", "'"])
def test_a_servers_password_may_be_any_text(password: str):
    with EmbeddedServer(password=password) as server:
        store = Store(parse_url(server.url))
        store.one(plain_call("GET", "k"))
        store.close()
