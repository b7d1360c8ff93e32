"""A replica notices the requests that are not its own: serves, refuses or forwards them."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray
from helpers import eventually
from serveapp import App, Run, Walk, sessions
from served import believes_next
from strayed import actor, actor_name, another, answered, home, metadata, sent, strays

from ray_route import FencedError, PodUnavailableError
from ray_route.serve.statements import Home, Way

pytestmark = pytest.mark.slow

IDS = ["cookie:sid", "query:session", "path:/rooms/{session}", "json:metadata.room", "json:user"]


@pytest.fixture(scope="module")
def forwarding(run_for_module: Run) -> App:
    options = {"on_stray": "forward", "session_id_from": IDS, "body_limit_bytes": 1_000}
    return joined(run_for_module(replicas=2, max_ongoing_requests=4, router=options))


@pytest.fixture(scope="module")
def refusing(run_for_module: Run) -> App:
    return joined(run_for_module(replicas=2, router={"on_stray": "refuse"}))


def joined(app: App, replicas: int = 2) -> App:
    eventually(lambda: len(app.alive()) == replicas, "all replicas have joined")
    return app


# Noticed.


def test_a_routed_request_knows_that_it_is_at_home(chat: App) -> None:
    for name in sessions(8):
        assert chat.say(name)["is_home"] is True
        assert chat.get(name)["is_home"] is True
    assert chat.handle.say.remote().result(timeout_s=30)["is_home"] is None, "it has no session"


def test_a_stray_is_served_noticed_and_counted(chat: App) -> None:
    joined(chat, 4)
    name = sessions(1)[0]
    there = chat.say(name)["replica"]
    astray = another(chat, there)
    before = strays(chat, astray).get(("unrouted", "served"), 0)
    assert answered(chat, astray, name)["is_home"] in (None, False), "it waits for no look-up"
    eventually(lambda: answered(chat, astray, name)["is_home"] is False, "it is known soon")
    assert strays(chat, astray)["unrouted", "served"] >= before + 2
    assert answered(chat, there, name)["is_home"] is not False
    eventually(lambda: answered(chat, there, name)["is_home"] is True, "at home, too")


def test_a_fresh_session_that_no_router_has_seen_gets_a_home(chat: App) -> None:
    replica = next(iter(joined(chat, 4).alive()))
    name = sessions(1)[0]

    def known() -> dict[str, Any] | None:
        answer = answered(chat, replica, name)
        return None if answer["is_home"] is None else answer

    assert eventually(known, "it is placed")["is_home"] == (chat.say(name)["replica"] == replica)


def test_what_was_on_its_way_when_its_session_moved_is_noticed(chat: App) -> None:
    joined(chat, 4)
    name = sessions(1)[0]
    there = chat.say(name)["replica"]
    old = home(chat, name)
    chat.client.move(name, chat.service, chat.alive()[another(chat, there)])
    late = answered(chat, there, name, said=(old, Way.HOME))
    assert (late["replica"], late["is_home"]) == (there, False)
    assert strays(chat, there)["moved", "served"] >= 1


def test_a_replica_knows_what_spills_to_it(run: Run) -> None:
    app = joined(run(replicas=2, max_ongoing_requests=2, router={"when_full": "spill"}))
    name = sessions(1)[0]
    there = app.say(name)["replica"]
    under_way = [app.saying(name, 1.5) for _ in range(4)]
    answers = [answer.result(timeout_s=30) for answer in under_way]
    assert {answer["is_home"] for answer in answers} == {True, False}
    assert all(answer["is_home"] == (answer["replica"] == there) for answer in answers)
    spilled = strays(app, another(app, there))
    assert spilled == {("spilled", "served"): sum(not answer["is_home"] for answer in answers)}


# Refused.


def test_a_stray_is_refused_with_its_home(refusing: App) -> None:
    name = sessions(1)[0]
    there = refusing.say(name)["replica"]
    astray = another(refusing, there)
    with pytest.raises(FencedError) as refused:
        answered(refusing, astray, name)
    error = refused.value.cause  # Ray's wrapper is of both kinds, and has no more
    assert actor_name(refusing, there) in str(refused.value)
    assert (error.uid, error.may_have_run) == (name, False)
    assert error.pod == refusing.alive()[there]
    assert answered(refusing, there, name)["count"] == refusing.say(name)["count"] - 1 == 2
    assert strays(refusing, astray)["unrouted", "refused"] == 1


def test_what_was_on_its_way_when_its_session_moved_is_refused(refusing: App) -> None:
    name = sessions(1)[0]
    there = refusing.say(name)["replica"]
    old = home(refusing, name)
    target = another(refusing, there)
    refusing.client.move(name, refusing.service, refusing.alive()[target])
    with pytest.raises(FencedError, match=target):
        answered(refusing, there, name, said=(old, Way.HOME))
    assert strays(refusing, there)["moved", "refused"] == 1
    eventually(lambda: refusing.say(name)["replica"] == target, "its new home serves it")


def test_a_move_waits_for_the_request_that_runs(refusing: App) -> None:
    name = sessions(1)[0]
    there = refusing.say(name)["replica"]
    running = refusing.saying(name, 1.5)
    eventually(lambda: busy(refusing, there), "it runs")
    with ThreadPoolExecutor(1) as pool:
        target = refusing.alive()[another(refusing, there)]
        pool.submit(refusing.client.move, name, refusing.service, target).result(30)
        moved_at = time.monotonic()
    answer = running.result(timeout_s=30)
    assert answer["replica"] == there
    assert answer["ended_at"] <= moved_at, "no two replicas serve it at once"


def busy(app: App, replica: str) -> int:
    return ray.get(actor(app, replica).get_num_ongoing_requests.remote())


# Forwarded.


def astray(app: App) -> tuple[str, str, str]:
    """Return a session, its home, and another replica."""
    name = sessions(1)[0]
    there = app.say(name)["replica"]
    return name, there, another(app, there)


def test_a_stray_is_passed_on_to_its_home(forwarding: App) -> None:
    name, there, elsewhere = astray(forwarding)
    answers = [answered(forwarding, elsewhere, name) for _ in range(3)]
    assert [answer["count"] for answer in answers] == [2, 3, 4]
    assert {(answer["replica"], answer["is_home"]) for answer in answers} == {(there, True)}
    assert strays(forwarding, elsewhere)["unrouted", "forwarded"] >= 3


def test_a_stray_stream_is_passed_on_item_by_item(forwarding: App) -> None:
    name, there, elsewhere = astray(forwarding)
    method = actor(forwarding, elsewhere).handle_request_streaming.options(num_returns="streaming")
    items = method.remote(metadata(forwarding, name, "words"), 5)
    assert [ray.get(item) for item in items] == [there] * 5


def test_leaving_a_stream_that_was_passed_on_ends_it_at_its_home(forwarding: App) -> None:
    name, there, elsewhere = astray(forwarding)
    method = actor(forwarding, elsewhere).handle_request_streaming.options(num_returns="streaming")
    items = method.remote(metadata(forwarding, name, "words"), 1_000_000, 0.05)
    assert [ray.get(next(items)) for _ in range(3)] == [there] * 3
    assert busy(forwarding, there)
    ray.cancel(items, recursive=False)
    eventually(lambda: not busy(forwarding, there), "it ends at its home")
    eventually(lambda: not busy(forwarding, elsewhere), "and where it came in")


def test_what_the_code_raises_comes_back_as_it_is(forwarding: App) -> None:
    name, _, elsewhere = astray(forwarding)
    with pytest.raises(KeyError, match="what the user's code raises"):
        answered(forwarding, elsewhere, name, method="fail")


def test_what_was_on_its_way_when_its_session_moved_follows_it(forwarding: App) -> None:
    name, there, target = astray(forwarding)
    old = home(forwarding, name)
    forwarding.client.move(name, forwarding.service, forwarding.alive()[target])
    late = answered(forwarding, there, name, said=(old, Way.HOME))
    assert (late["replica"], late["count"]) == (target, 1)
    assert strays(forwarding, there)["moved", "forwarded"] >= 1


def moved_here(app: App) -> tuple[str, str, Home]:
    """Return a session, its home, and where it lived before."""
    name, _, target = astray(app)
    old = home(app, name)
    app.client.move(name, app.service, app.alive()[target])
    return name, target, old


def test_what_its_old_home_does_not_let_in_is_passed_on_to_its_new_one(forwarding: App) -> None:
    name, here, old = moved_here(forwarding)
    # From here to its old home, which refuses it: it lives here.
    late = answered(forwarding, here, name, said=(old, Way.HOME))
    assert (late["replica"], late["count"], late["is_home"]) == (here, 1, True)
    method = actor(forwarding, here).handle_request_streaming.options(num_returns="streaming")
    items = method.remote(metadata(forwarding, name, "words", (old, Way.HOME)), 3)
    assert [ray.get(item) for item in items] == [here] * 3


def test_nor_does_a_browser_hear_of_that(forwarding: App) -> None:
    name, here, old = moved_here(forwarding)
    for replica in forwarding.alive():  # whichever has it first
        ray.get(actor(forwarding, replica).__ray_call__.remote(believes_next, old))
    for number in range(1, 5):
        answer = asked(forwarding, body={"user": name})
        assert (answer["replica"], answer["count"], answer["is_home"]) == (here, number, True)


def test_nothing_is_passed_on_twice(forwarding: App) -> None:
    name, there, elsewhere = astray(forwarding)
    now = home(forwarding, name)
    with pytest.raises(FencedError, match="passed on once"):
        answered(forwarding, elsewhere, name, said=(now, Way.FORWARDED))
    stale = now._replace(link=now.link.__class__(*now.link.__reduce__()[1][:2], 1, False, 0.0))
    with pytest.raises(FencedError):
        answered(forwarding, there, name, said=(stale, Way.FORWARDED))


def test_full_replicas_that_pass_on_to_each_other_do_not_wait_for_ever(forwarding: App) -> None:
    homes: dict[str, str] = {}
    while len(set(homes.values())) < 2:
        homes.update(forwarding.homes(sessions(2)))
    under_way = [
        sent(forwarding, another(forwarding, there), name, 0.05)
        for name, there in homes.items()
        for _ in range(10)
    ]
    answers = ray.get(under_way, timeout=60)
    assert {(answer["session"], answer["replica"]) for answer in answers} == set(homes.items())


def test_what_is_passed_on_to_a_home_that_has_ended_fails_until_it_has_a_new_one(
    forwarding: App,
) -> None:
    name, there, elsewhere = astray(forwarding)
    assert answered(forwarding, elsewhere, name)["replica"] == there
    os.kill(forwarding.say(name)["pid"], signal.SIGKILL)

    def served() -> bool:
        try:
            return bool(answered(forwarding, elsewhere, name)["count"] == 1)
        except PodUnavailableError:
            return False

    eventually(served, "it has a new home")
    joined(forwarding)


def test_a_replica_that_leaves_fails_no_request(run: Run) -> None:
    app = joined(run(replicas=2, router={"on_stray": "forward"}))
    names = sessions(20)
    with Walk(app, names) as walk:
        gone = set(app.alive())
        app.redeploy(1)
        stays = eventually(lambda: len(app.alive()) == 1 and app.alive(), "one has left")
        gone -= set(stays)
        walk.go_on()
    assert [str(error) for error in walk.errors] == []
    assert set(walk.moved()) == {name for name in names if walk.path[name][0] in gone}
    assert all(len(path) == 2 for path in walk.moved().values()), "each once"


# Sessions without Serve's header.


def asked(app: App, path: str = "", body: Any = None, **headers: str) -> dict[str, Any]:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        names.setdefault("content-type", "application/json")
    request = urllib.request.Request(f"{app.url}{path}", data=data, headers=names)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def ways(name: str) -> list[dict[str, Any]]:
    return [
        {"x_session_id": name},
        {"cookie": f"a=b; sid={name}"},
        {"path": f"?session={name}"},
        {"path": f"/rooms/{name}/say"},
        {"body": {"user": name, "messages": []}},
        {"body": {"user": "another", "metadata": {"room": name}}},
    ]


def test_a_session_is_found_wherever_it_is_told(forwarding: App) -> None:
    for name in sessions(4):
        answers = [asked(forwarding, **way) for _ in range(2) for way in ways(name)]
        assert [answer["count"] for answer in answers] == list(range(1, 13)), "at one replica"
        assert {answer["session"] for answer in answers} == {name}
        assert {answer["is_home"] for answer in answers} == {True}
        by_handle = forwarding.say(name)
        assert (by_handle["count"], by_handle["replica"]) == (13, answers[0]["replica"])


def test_a_body_that_was_looked_into_arrives_whole(forwarding: App) -> None:
    body = json.dumps({"user": sessions(1)[0], "text": "x" * 500}).encode()
    assert {asked(forwarding, body=body)["body"] for _ in range(8)} == {len(body)}


def test_an_answer_is_passed_on_as_a_stream(forwarding: App) -> None:
    name = sessions(1)[0]
    there = asked(forwarding, body={"user": name})["replica"]
    for _ in range(6):
        data = json.dumps({"user": name}).encode()
        kind = {"content-type": "application/json"}
        request = urllib.request.Request(f"{forwarding.url}?words=3", data=data, headers=kind)
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.read().decode() == there * 3


@pytest.mark.parametrize("way", [{"cookie": "sid=" + "x" * 600}, {"body": {"user": ["a", "b"]}}])
def test_a_bad_id_is_refused_and_runs_nowhere(forwarding: App, way: dict[str, Any]) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        asked(forwarding, **way)
    assert refused.value.code == 400
    assert "the session id of a request" in refused.value.read().decode()


def test_a_body_over_the_limit_is_not_searched_and_counted(forwarding: App) -> None:
    def overlooked() -> int:
        counts = [strays(forwarding, replica) for replica in forwarding.alive()]
        return sum(count.get(("overlooked", "served"), 0) for count in counts)

    before = overlooked()
    answer = asked(forwarding, body={"user": "somebody", "text": "x" * 2_000})
    assert (answer["session"], answer["is_home"]) == ("", None)
    assert overlooked() == before + 1


def test_a_request_without_any_id_goes_anywhere(forwarding: App) -> None:
    answers = [asked(forwarding, body={"text": "hello"}) for _ in range(30)]
    assert {answer["replica"] for answer in answers} == set(forwarding.alive())
