"""A session has one home, whoever asks, over HTTP and by handles."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
import ray
from helpers import eventually, unique_name
from ray import serve
from serveapp import App, Run, sessions
from served import Front

from ray_route.runtime.metrics import LOOKUPS, meter

pytestmark = pytest.mark.slow

SOME = 200


@ray.remote(num_cpus=0)
class Caller:
    """Another process, with a router of its own."""

    def __init__(self, app: str) -> None:
        self.handle = serve.get_app_handle(app)

    def answered(self, namespace: str, source: str) -> int:
        return meter(namespace).counts[LOOKUPS.name, (source, "link")]

    async def homes(self, names: list[str]) -> dict[str, str]:
        asked = {name: self.handle.options(session_id=name).say.remote() for name in names}
        return {name: (await answer)["replica"] for name, answer in asked.items()}


def test_a_thousand_sessions_are_spread_evenly(chat: App) -> None:
    chat.say(sessions(1)[0])  # replicas join as those who route to them hear of them

    def available() -> list[Any]:
        return [it for it in chat.client.pods(chat.service).values() if it.available]

    eventually(lambda: len(available()) == 4, "all four have joined")
    homes = chat.homes(sessions(1_000))
    counts = Counter(homes.values())
    print(counts)
    assert len(counts) == 4
    assert max(counts.values()) <= 1.02 * 1_000 / 4


def test_a_session_comes_back_to_where_its_state_is(chat: App) -> None:
    name = sessions(1)[0]
    answers = [chat.say(name) for _ in range(5)] + [chat.get(name) for _ in range(5)]
    assert len({answer["replica"] for answer in answers}) == 1
    assert [answer["count"] for answer in answers] == list(range(1, 11))


def test_three_processes_that_meet_fresh_sessions_at_once_agree(chat: App) -> None:
    names = sessions(SOME)
    callers = [Caller.remote(chat.name) for _ in range(2)]
    ray.get([caller.homes.remote(sessions(1)) for caller in callers])  # their routers are up
    elsewhere = [caller.homes.remote(names) for caller in callers]
    by_proxy = chat.gets(names)
    for homes in ray.get(elsewhere):
        assert homes == by_proxy


def test_the_home_of_a_known_session_is_read_from_redis_by_who_asks(chat: App) -> None:
    caller = Caller.remote(chat.name)

    def answered(source: str) -> int:
        return ray.get(caller.answered.remote(chat.client.namespace, source))

    def reads() -> bool:  # once a router has vouched for the server
        names = sessions(8)
        homes, before = chat.homes(names), (answered("redis"), answered("router"))
        assert ray.get(caller.homes.remote(names)) == homes
        return answered("redis") == before[0] + 8 and answered("router") == before[1]

    eventually(reads, "all homes come from Redis, and none from the router")


@pytest.fixture(scope="module")
def fronted(run_for_module: Run) -> App:
    """An ingress before three replicas."""
    return run_for_module(replicas=3, front=Front)


def test_nested_calls_at_once_all_end(fronted: App) -> None:
    names = sessions(30)
    answers = fronted.handle.many.remote(names).result(timeout_s=20)
    assert Counter(answers) == dict.fromkeys(fronted.alive(), 10), "those who wait are spread too"
    assert fronted.handle.many.remote(names).result(timeout_s=20) == answers


def test_nested_calls_at_once_without_a_session_all_end(fronted: App) -> None:
    answers = fronted.handle.many.remote([None] * 30).result(timeout_s=20)
    assert len(answers) == 30


def test_a_nested_call_stays_in_its_session(fronted: App) -> None:
    names = sessions(12)
    chat = serve.get_deployment_handle("Chat", fronted.name)
    direct = {name: chat.options(session_id=name).say.remote() for name in names}
    homes = {name: answer.result(timeout_s=20)["replica"] for name, answer in direct.items()}
    assert fronted.gets(names) == homes
    assert len(set(homes.values())) == 3


def test_a_stream_comes_from_the_sessions_home(chat: App) -> None:
    for name in sessions(8):
        stream = chat.handle.options(session_id=name, stream=True).words.remote(5)
        assert set(stream) == {chat.say(name)["replica"]}


def test_requests_without_a_session_go_anywhere(chat: App) -> None:
    met: set[str] = set()

    def all_met() -> bool:
        asked = [chat.handle.say.remote() for _ in range(40)]
        met.update(answer.result(timeout_s=20)["replica"] for answer in asked)
        return met == set(chat.alive())

    eventually(all_met, "every replica was met")


@pytest.mark.parametrize("how", [{}, {"_reserve": False}])  # the latter for LLM ingresses
def test_a_replica_that_is_only_chosen_is_the_sessions_home(chat: App, how: Any) -> None:
    async def chosen(name: str) -> str:
        async with chat.handle.options(session_id=name).choose_replica(**how) as selection:
            return str(selection.replica_id)

    names = sessions(8)
    picked = {name: asyncio.run(chosen(name)) for name in names}
    assert picked == chat.homes(names)
    assert len(set(picked.values())) > 1


@pytest.mark.parametrize("odd", ["ü" * 400, "a b:c/{d}", "\x00"])
def test_any_text_can_name_a_session(chat: App, odd: str) -> None:
    name = unique_name() + odd
    assert [chat.say(name)["count"] for _ in range(3)] == [1, 2, 3]


def test_a_moved_session_is_served_at_its_new_home(chat: App) -> None:
    name = sessions(1)[0]
    old, via_proxy = chat.say(name)["replica"], chat.get(name)["replica"]
    assert old == via_proxy
    replica, pod = next((name, pod) for name, pod in chat.alive().items() if name != old)
    link = chat.client.move(name, chat.service, pod)
    assert link.pod == pod
    eventually(lambda: chat.say(name)["replica"] == replica, "this process follows")
    eventually(lambda: chat.get(name)["replica"] == replica, "the proxy follows")
    assert "SERVE_REPLICA" in str(chat.client.pods(chat.service)[pod].actor)
    assert f"pod {pod}" in str(chat.client.explain(name, chat.service))


def full(app: App, name: str, requests: int) -> list[Any]:
    """Send a session more requests at once than its home may run."""
    answers = [app.saying(name, 0.2) for _ in range(requests)]
    return [answer.result(timeout_s=20)["replica"] for answer in answers]


def test_a_request_waits_while_its_home_is_full(chat: App) -> None:
    name = sessions(1)[0]
    assert set(full(chat, name, 110)) == {chat.say(name)["replica"]}


def test_a_request_may_spill_while_its_home_is_full_and_its_session_stays(run: Run) -> None:
    app = run(replicas=2, max_ongoing_requests=5, router={"when_full": "spill"})
    name = sessions(1)[0]
    home = app.say(name)["replica"]
    app.homes(sessions(2))
    assert len(set(full(app, name, 20))) == 2
    assert {app.say(name)["replica"] for _ in range(5)} == {home}
