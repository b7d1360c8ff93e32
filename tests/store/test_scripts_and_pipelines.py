"""How calls reach a server that may not know the scripts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import pytest
from shardbench import Shard

from ray_route.errors import DamagedKeyError, StoreUnavailableError
from ray_route.store.connect import AsyncStore
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.scripts import Call, plain_call, script
from ray_route.store.url import parse_url

FORGET = Call("", ("SCRIPT", "FLUSH"))
LUA = resources.files("ray_route.store") / "lua"
SCRIPTS = sorted(file.name[:-4] for file in LUA.iterdir() if not file.name.startswith("_"))

Run = Callable[[Sequence[Call]], list[Any]]


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest, shard: Shard, server: EmbeddedServer) -> Run:
    """Sends calls by a `Store` or an `AsyncStore`, to a server that knows no script."""
    shard.store.one(FORGET)

    async def run_async(calls: Sequence[Call]) -> list[Any]:
        store = AsyncStore(parse_url(server.url))
        try:
            return await store.run(calls)
        finally:
            await store.close()

    if request.param == "sync":
        return shard.store.run
    return lambda calls: asyncio.run(run_async(calls))


def test_a_script_that_the_server_has_forgotten_is_sent_again(shard: Shard, run: Run):
    (reply,) = run([shard.call("set_if_absent", ["u"], ["1:7"])])
    assert shard.calls.parse(reply).written == [True]
    assert shard.raw("u") is not None


def test_forgotten_scripts_in_a_pipeline_are_answered_in_their_places(shard: Shard, run: Run):
    calls = [
        plain_call("SET", "plain", "x"),
        shard.call("set_if_absent", ["a"], ["1:7"]),
        plain_call("GET", "plain"),
        shard.call("set_if_absent", ["b"], ["2:8"]),
        plain_call("STRLEN", "plain"),
    ]
    replies = run(calls)
    assert [shard.calls.parse(replies[index]).links[0].pod for index in (1, 3)] == [1, 2]
    assert [replies[index] for index in (2, 4)] == [b"x", 1]


def test_a_server_that_forgets_in_the_middle_of_a_pipeline_loses_nothing(shard: Shard, run: Run):
    run([shard.call("set", ["warm"], ["1:7"], persistent=False)])
    uids = ["a", "b", "c"]
    calls = [shard.call("set", [uid], ["1:7"], persistent=False) for uid in uids]
    replies = run([calls[0], FORGET, *calls[1:]])
    assert all(shard.calls.parse(replies[index]).written == [True] for index in (0, 2, 3))
    assert None not in [shard.raw(uid) for uid in uids]


def test_a_stream_is_read_by_the_key_that_the_call_names(run: Run):
    (entry,) = run([plain_call("XADD", "stream", "*", "kind", "beat")])
    words = ("XREAD", "COUNT", 1, "BLOCK", 10, "STREAMS", "stream", "0-0")
    (reply,) = run([Call("stream", words)])
    assert entry.decode() in repr(reply)


def test_one_call_that_fails_fails_alone(shard: Shard, run: Run):
    shard.store.one(plain_call("RPUSH", shard.key("broken"), "no link"))
    calls = [shard.call("set_if_absent", [uid], ["1:7"]) for uid in ("a", "b")]
    first, broken, unknown, second = run(
        [calls[0], plain_call("GET", shard.key("broken")), plain_call("NOSUCH", "key"), calls[1]]
    )
    assert shard.calls.parse(first).written == shard.calls.parse(second).written == [True]
    assert isinstance(unknown, StoreUnavailableError)
    assert isinstance(broken, DamagedKeyError)
    assert broken.key == shard.key("broken")


def test_the_error_of_a_single_call_is_raised(shard: Shard):
    with pytest.raises(StoreUnavailableError, match="unknown command"):
        shard.store.one(plain_call("NOSUCH", "key"))
    shard.store.one(plain_call("RPUSH", shard.key("broken"), "no link"))
    with pytest.raises(DamagedKeyError, match=shard.key("broken")):
        shard.store.one(plain_call("GET", shard.key("broken")))


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_compiles_and_states_its_contract(shard: Shard, name: str):
    loaded = script(name)
    assert shard.store.one(Call("", ("SCRIPT", "LOAD", loaded.source))) == loaded.sha.encode()
    contract = (LUA / f"{name}.lua").read_text()
    assert "-- KEYS" in contract
    assert "-- Returns" in contract
