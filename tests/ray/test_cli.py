"""Operators' commands as they are run: the installed command, against a real cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import pytest
import ray
from commands import Command, Finished
from helpers import end_router, eventually, router_handle, unique_name
from ray.util import list_named_actors
from services import Carrier, Counter, Waiting
from upgraded import Count

import ray_route
from ray_route.cli.app import app, main
from ray_route.errors import DamagedKeyError, PartialBatchError
from ray_route.store.connect import Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.scripts import plain_call
from ray_route.store.url import parse_url

pytestmark = [pytest.mark.slow, pytest.mark.own_namespace]

Run = Callable[..., Finished]


@pytest.fixture
def run(
    client: ray_route.RouteClient,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Runs a command in this process, in the client's namespace."""

    def run_it(*words: str, namespace: str = client.namespace, **variables: str) -> Finished:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                main([*words, "-n", namespace])
        out, err = capsys.readouterr()
        ours = "".join(line for line in err.splitlines(True) if "(raylet)" not in line)
        return Finished(int(str(ended.value.code)), out, ours)

    return run_it


@pytest.fixture
def run_apart(command: Command, client: ray_route.RouteClient) -> Run:
    """Runs the installed command in a process of its own."""
    at = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    return lambda *words, **variables: command.run(*words, **{**at, **variables})


def shown(done: Finished) -> Any:
    """What a command with --json printed."""
    assert done.err == "", done
    return json.loads(done.out)


def routers() -> list[str]:
    named = (actor["name"] for actor in list_named_actors(all_namespaces=True))
    return sorted(name for name in named if name.endswith(":router"))


def test_status_shows_router_store_and_pods(
    run: Run, run_apart: Run, client: Any, svc: Any, u: str
) -> None:
    client.compute_linked_pod(u, "svc")
    done = run_apart("status", "-n", client.namespace)
    assert done.status == 0, done
    assert "valkey" in done.out
    assert "answers in" in done.out
    assert done.out.count("READY") == 3
    about = shown(run("status", "--json"))
    (only,) = about["namespaces"]
    pid, node = ray.get(router_handle(client.namespace).whereabouts.remote())
    assert (only["namespace"], only["router"]["pid"]) == (client.namespace, pid)
    pods = only["services"]["svc"]
    assert [pod["pod"] for pod in pods] == [0, 1, 2]
    assert sum(pod["links"] for pod in pods) >= 1
    assert {pod["node"] for pod in pods} == {node}
    assert all(pod["heartbeat_age_s"] < 30 for pod in pods)


def test_a_mistyped_namespace_makes_nothing(run: Run, client: Any, svc: Any) -> None:
    before = routers()
    wrong = unique_name()
    for words in (("status",), ("pods",), ("explain", "u", "svc"), ("drain", "svc", "0")):
        done = run(*words, namespace=wrong)
        assert (done.status, done.out) == (2, ""), done
        assert f"unknown namespace '{wrong}'; known are: " in done.err
        assert client.namespace in done.err
    assert routers() == before
    store = client._session.namespace.store._client
    assert not store.keys(f"rr:{{{wrong}*")


def test_a_namespace_without_a_router_is_shown_and_gets_none(
    run: Run, client: Any, deploy: Any
) -> None:
    name = unique_name()
    agent = ray_route.PodAgent(name, "svc", 0).start()
    with ray_route.connect(name) as other:
        link = other.compute_linked_pod("u", "svc")
    agent.stop()
    end_router(name)
    status = run("status", namespace=name)
    assert status.status == 0, status
    assert "none; the first client that connects makes one" in status.out
    assert "resigned" in status.out
    where = shown(run("where", "u", "--json", namespace=name))
    assert where["svc"]["epoch"] == link.epoch
    done = run("explain", "u", "svc", namespace=name)
    assert done.status == 2, done
    assert "the router is unavailable: there is none" in done.err
    assert f"ray_route:{name}:router" not in routers()


def test_an_unknown_service_or_pod_lists_the_known(run: Run, svc: Any) -> None:
    done = run("pods", "scv")
    assert done.status == 2, done
    assert "unknown service 'scv'; known are: " in done.err
    assert "svc" in done.err
    done = run("drain", "svc", "9")
    assert done.err == "Error: unknown pod '9'; known are: 0, 1, 2\n"


def test_where_explain_and_move(run: Run, client: Any, svc: Any, u: str) -> None:
    nowhere = run("where", u)
    assert nowhere.status == 1, nowhere
    assert "has no link" in nowhere.out
    assert run("explain", u, "svc").status == 1
    not_moved = run("move", u, "svc", "0")
    assert not_moved.status == 1, not_moved
    assert "--place makes one" in not_moved.err
    assert client.get_linked_pod_not_cache(u, "svc") is None
    link = client.compute_linked_pod(u, "svc")
    assert f"ray_route:{client.namespace}:svc:{link.pod}" in run("where", u).out
    target = (link.pod + 1) % 3
    assert shown(run("move", u, "svc", str(target), "--json"))["pod"] == target
    assert client.get_linked_pod_not_cache(u, "svc").pod == target
    explained = run("explain", u, "svc")
    assert explained.status == 0, explained
    assert f"placed: pod {link.pod}" in explained.out
    assert f"set from pod {link.pod}: pod {target}" in explained.out
    assert shown(run("where", u, "--json"))["svc"]["pod"] == target


def test_remove_and_place(run: Run, client: Any, svc: Any, u: str) -> None:
    assert shown(run("move", u, "svc", "2", "--place", "--json"))["pod"] == 2
    assert run("remove", u, "svc").status == 0
    assert client.get_linked_pod_not_cache(u, "svc") is None
    again = run("remove", u, "svc")
    assert (again.status, again.out) == (1, f"{u!r} has no link\n"), again


def test_a_service_is_scaled_closed_opened_and_ended_from_a_shell(
    run: Run, client: Any, deploy: Any
) -> None:
    service = deploy(Counter, replicas=1).service
    assert run("scale", service, "2").out == f"{service} has 2 pods\n"
    assert shown(run("cordon", service, "0", "--json"))["cordoned"]
    about = shown(run("service", service, "--json"))
    assert (about["replicas"], about["pods"], about["cordons"]) == (2, [0, 1], [0])
    assert client.compute_linked_pod("u", service).pod == 1
    assert "closed to new uids" in run("service", service).out
    assert run("uncordon", service, "0").out == f"pod 0 of {service} takes new uids\n"
    unknown = run("cordon", service, "7")
    assert (unknown.status, "has pods [0, 1]" in unknown.err) == (2, True), unknown
    assert run("shutdown", service, "--grace", "5").out == f"{service} is ended\n"
    ended = run("service", service)
    assert (ended.status, "is not deployed" in ended.err) == (2, True), ended


def test_a_service_is_upgraded_from_a_shell(
    run: Run, deploy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    service = deploy(Count, replicas=1, args=(str(tmp_path),)).service
    done = run("upgrade", service, "upgraded:Count", "--max-surge", "2")
    assert (done.status, done.out) == (0, f"{service} runs generation 2: 0 uids moved\n"), done
    undone = run("upgrade", service, "upgraded:Unborn", "--json")
    told = json.loads(undone.out)
    assert (undone.status, told["done"], told["back"]) == (1, True, True), undone
    assert f"no {tmp_path}" in told["error"]
    assert shown(run("service", service, "--json"))["generations"] == {"1": 2}
    (tmp_path / "mine.py").write_text(
        "class Mine:\n    def __init__(self, folder):\n        pass\n"
    )
    monkeypatch.chdir(tmp_path)
    done = run("upgrade", service, "mine:Mine")
    assert done.status == 0, done
    unknown = run("upgrade", service, "upgraded:Nobody")
    assert (unknown.status, "can't be imported" in unknown.err) == (2, True), unknown


def test_a_drain_to_its_end(run: Run, client: Any, deploy: Any) -> None:
    deployment = deploy(Counter)
    uids = [f"u{number}" for number in range(30)]
    before = client.compute_linked_pods(uids, deployment.service)
    for uid in uids:
        client.call(uid, deployment.service, "add", uid)
    done = run("drain", deployment.service, "0")
    assert done.status == 0, done
    moved = sum(link.pod == 0 for link in before.values())
    assert f"pod 0 of {deployment.service} is drained: {moved} uids moved" in done.out
    assert shown(run("drain", deployment.service, "0", "--json"))["done"]
    assert {link.pod for link in client.compute_linked_pods(uids, deployment.service).values()} == {
        1,
        2,
    }


def test_a_drain_moves_all_but_the_damaged_names_their_keys_and_ends_when_they_are_mended(
    run: Run, client: Any, deploy: Any
) -> None:
    service = deploy(Carrier, replicas=2).service
    uids = [f"u{number}" for number in range(20)]
    for uid in uids:
        assert client.set_linked_pod_if_absent(uid, service, 0).pod == 0
        assert client.call(uid, service, "add", uid) == 1
    store, keys = client._session.namespace.store, client._session.namespace.keys
    link = keys.link(keys.shard("u7"), service, "u7")
    store.one(plain_call("SET", link, "garbage"))
    done = run("drain", service, "0", "--json")
    assert done.status == 1, done
    last = json.loads(done.out)
    assert (last["moved"], last["left"], last["done"]) == (19, 1, True)
    assert last["damaged"] == [{"uid": "u7", "key": link, "reason": "'garbage' instead of a link"}]
    done = run("drain", service, "0")
    assert (done.status, f"{link} among them: `ray-route doctor` says" in done.out) == (1, True)
    assert client.pods(service)[0].state is ray_route.RoutingState.READY, "it is given back"

    for found in faults(run):
        mend(found["command"], store)
    eventually(lambda: run("drain", service, "0").status == 0, "it is drained")
    assert {client.compute_linked_pod(uid, service).pod for uid in uids} == {1}
    assert [client.call(uid, service, "add", uid) for uid in uids] == [2] * 20


@pytest.fixture
def busy(client: Any, deploy: Any, tmp_path: Path) -> Iterator[tuple[str, str, Path, Any]]:
    """A service with a call that lasts until a file is there."""
    service = deploy(Waiting, replicas=2).service
    uid, gate = unique_name(), tmp_path / "gate"
    assert client.set_linked_pod_if_absent(uid, service, 0).pod == 0
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.call, uid, service, "wait", uid, str(gate), timeout=60)
        eventually(gate.with_suffix(".begun").exists, "the call is under way")
        yield service, uid, gate, call
        gate.touch()


def test_an_interrupted_drain_says_how_things_stand_and_goes_on(
    run: Run, command: Command, client: Any, busy: Any
) -> None:
    service, uid, gate, call = busy
    process = command.start(
        "drain",
        service,
        "0",
        "-n",
        client.namespace,
        RAY_ADDRESS=ray.get_runtime_context().gcs_address,
    )
    denied = ray_route.RoutingState.DENY_NEW
    eventually(lambda: client.pods(service)[0].state is denied, "the drain has begun")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert f"The drain goes on in the router. Pod 0 of {service} is DENY_NEW" in err
    assert f"ray-route drain {service} 0 -n {client.namespace}" in err
    assert "Traceback" not in err
    gate.touch()
    assert call.result(30) == 1
    assert run("drain", service, "0").status == 0
    assert client.compute_linked_pod(uid, service).pod == 1


def test_a_drain_that_ends_at_its_deadline_is_a_1(run: Run, busy: Any) -> None:
    service, *_ = busy
    done = run("drain", service, "0", "--deadline", "0.5", "--json")
    assert done.status == 1, done
    assert "1 uids were left after 0.5 s" in json.loads(done.out)["problem"]


def test_top_refreshes(run: Run, client: Any, svc: Any) -> None:
    done = run("top", "svc", "--json", "--count", "3", "--interval", "0.1")
    assert done.status == 0, done
    views = [json.loads(line) for line in done.out.splitlines()]
    assert len(views) == 3
    assert [len(view["pods"]["svc"]) for view in views] == [3, 3, 3]
    assert views[0]["at"] < views[1]["at"] < views[2]["at"]
    assert "new links/s" in run("top", "--count", "1").out


def test_a_password_on_the_command_line_is_refused(run: Run) -> None:
    done = run("status", "--redis-url", "redis://:secret-word@127.0.0.1:1/0")
    assert (done.status, done.out) == (2, "")
    assert "set RAY_ROUTE_REDIS_URL instead" in done.err
    assert "secret-word" not in done.err


def test_what_does_not_answer_is_one_line(run: Run, run_apart: Run) -> None:
    done = run("status", RAY_ROUTE_REDIS_URL="redis://:secret-word@127.0.0.1:1/0")
    assert done.status == 2
    assert done.err.startswith("Error: the store at 127.0.0.1:1 is unavailable")
    assert done.err.count("\n") == 1
    assert "secret-word" not in done.err
    done = run_apart("status", "--address", "127.0.0.1:1")
    assert (done.status, done.err) == (
        2,
        "Error: no Ray at 127.0.0.1:1 could be joined: nothing listens there\n",
    )


def findings(done: Finished) -> dict[str, dict[str, str]]:
    return {each["what"]: each for each in shown(done)}


def test_doctor_finds_nothing_where_all_is_well(run: Run, client: Any, svc: Any) -> None:
    before = {key for key in client._session.namespace.store._client.keys("*") if b"doctor" in key}
    done = run("doctor", "--json")
    assert done.status == 0, done
    found = findings(done)
    assert found["permissions"]["level"] == "ok", found
    assert "3 ready of 3 alive" in found[f"pods of {client.namespace}/svc"]["found"]
    after = {key for key in client._session.namespace.store._client.keys("*") if b"doctor" in key}
    assert after == before == set()


def test_damaged_keys_harm_nobody_else_and_are_mended_as_doctor_says(
    run: Run, client: ray_route.RouteClient, svc: Any, u: str
) -> None:
    others = [f"{u}-{number}" for number in range(20)]
    counts = {uid: client.call(uid, "svc", "add", uid) for uid in [u, *others]}
    store, keys = client._session.namespace.store, client._session.namespace.keys
    link = keys.link(keys.shard(u), "svc", u)
    store.one(plain_call("SET", link, "garbage\n"))
    store.one(plain_call("HSET", keys.pods("svc"), "it's", "nobody's"))
    for harm in (
        plain_call("SET", keys.counter(keys.shard(others[0])), "garbage"),
        plain_call("XADD", keys.log, "*", "hello", "world"),
        plain_call("HSET", keys.meta, "options", "garbage"),
        plain_call("HSET", keys.pods("svc"), "1:seq", "garbage"),
    ):
        store.one(harm)

    for uid in [u, *others]:
        client.cache_expired(uid, "svc")
    with pytest.raises(DamagedKeyError) as told:
        client.compute_linked_pod(u, "svc")
    assert (told.value.key, told.value.uid) == (link, u)
    assert [client.call(uid, "svc", "add", uid) for uid in others] == [counts[u] + 1] * 20
    assert client.call(f"{u}-new", "svc", "add", f"{u}-new") == 1
    with pytest.raises(PartialBatchError) as partly:
        client.batch_get_linked_pod([u, *others], "svc")
    assert (partly.value.unanswered, partly.value.damaged) == ([u], [link])

    assert {link, keys.pods("svc")} <= {each["what"] for each in faults(run)}

    def printed() -> list[str] | None:
        """Return the commands, each a whole line for a shell: a table would break it."""
        commands = [each["command"] for each in faults(run)]
        return commands if set(commands) <= set(run("doctor").out.splitlines()) else None

    for command in eventually(printed, "both forms tell of the same faults"):
        mend(command, store)
    eventually(lambda: faults(run) == [], "all is well again")
    assert client.call(u, "svc", "add", u) == counts[u] + 1  # where it was, with its memory


def faults(run: Run) -> list[Any]:
    done = run("doctor", "--json")
    found = [each for each in shown(done) if each["level"] == "fault"]
    assert done.status == bool(found)
    return found


def mend(command: str, store: Store) -> None:
    """Run a command as printed, but for the address and the password."""
    program = Path(sysconfig.get_path("scripts")) / "redis-cli"
    host, port = store.url.nodes[0]
    subprocess.run(
        ["/bin/bash", "-c", f'redis-cli() {{ {program} -h {host} -p {port} "$@"; }}; {command}'],
        env={**os.environ, "REDISCLI_AUTH": store.url.password or ""},
        check=True,
        timeout=30,
    )


def test_doctor_finds_what_is_wrong_and_says_what_to_change(
    run_apart: Run,
) -> None:
    with EmbeddedServer("redis") as server:
        store = Store(parse_url(server.url))
        plain = store._client
        plain.config_set("maxmemory", "100mb")
        plain.config_set("maxmemory-policy", "allkeys-lru")
        plain.config_set("appendonly", "no")
        may = ["on", ">secret-word", "~rr:{*", "+@all", "-xadd"]
        plain.execute_command("ACL", "SETUSER", "op", *may)
        host, port = parse_url(server.url).nodes[0]
        url = f"redis://op:secret-word@{host}:{port}/0"
        done = run_apart("doctor", "--json", RAY_ROUTE_REDIS_URL=url)
        left = plain.keys("*")
        store.close()
    assert done.status == 1, done
    found = {each["what"]: each for each in json.loads(done.out)}
    assert found["store safety"]["level"] == "fault"
    assert found["store safety"]["advice"] == "set maxmemory-policy to noeviction"
    assert found["permissions"]["level"] == "fault"
    assert "XADD" in found["permissions"]["found"]
    assert found["persistence"]["level"] == "warning"
    assert left == []
    assert "secret-word" not in done.out + done.err


@pytest.mark.parametrize("name", sorted(app.commands))
def test_every_command_has_json_examples_and_a_first_sentence(name: str) -> None:
    made = app.commands[name]
    assert made.help
    options = {option for parameter in made.params for option in parameter.opts}
    assert "--json" in options
    assert f"ray-route {name}" in made.help
    described = [p.help for p in made.params if isinstance(p, click.Option) and p.name == "address"]
    assert all(described)
