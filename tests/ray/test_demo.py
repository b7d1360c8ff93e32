"""The demo as a user runs it: the installed command, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from commands import Command, Finished
from helpers import end_router, eventually, router_handle, unique_name
from ray.util import list_named_actors
from services import Counter

import ray_route
from ray_route.cli.app import main
from ray_route.demo.trace import zipf_trace
from ray_route.protocol.names import RAY_NAMESPACE
from ray_route.runtime import bootstrap
from ray_route.runtime.bootstrap import clear_namespace
from ray_route.runtime.process_ids import has_ended, identify
from ray_route.store.embedded import EmbeddedServer

pytestmark = pytest.mark.slow

COLLEGE = Path(__file__).parents[3] / "shared" / "data" / "college_msg.txt"
EVENTS = 3_000
Here = Callable[..., Finished]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("demo") / "log.txt"
    recipients = zipf_trace(4, events=EVENTS, people=400).recipients
    lines = (f"0 {uid} {time}" for time, uid in enumerate(recipients))
    path.write_text("src dst time\n" + "\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def joined(ray_session: None) -> dict[str, str]:
    """Have the demo join the tests' Ray: to start and stop one of its own takes 9 s."""
    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


def test_a_log_is_replayed_and_checked(command: Command, log: str, joined: dict[str, str]) -> None:
    before = actors()
    done = command.run("demo", "--trace", log, "--pods", "2", **joined)
    assert (done.status, done.kept) == (0, 3), done
    *pods, total = (row for row in done.rows if row[0].isdigit() or row[0] == "all")
    assert [row[:2] for row in pods] == [["0", "alive"], ["1", "alive"]]
    assert sum(int(row[3]) for row in pods) == int(total[3]) == EVENTS
    assert sum(int(row[2]) for row in pods) == int(total[2])
    assert f"{log}: 3,000 events" in done.out
    assert "3000/3000" in done.err
    assert "Ray: joined" in done.out
    assert ("embedded, started for this" in done.out) == ("ray_route:store" not in before)
    eventually(lambda: actors() == before, f"the same actors as before: {before}")


def test_a_pod_dies_and_pods_are_added(command: Command, log: str) -> None:
    """On a Ray of its own, of which no process may be left."""
    done = command.run("demo", "--trace", log, "--kill", "--scale-out")
    assert (done.status, done.kept) == (0, 5), done
    assert "Ray: started for this" in done.out
    dead = [row for row in done.rows if row[1] == "dead"]
    alive = [row for row in done.rows if row[1] == "alive"]
    assert [row[0] for row in dead] == ["0"]
    assert int(dead[0][3]) > 0
    assert [row[0] for row in alive] == ["0", "1", "2", "3", "4", "5"]
    assert all(int(row[3]) > 0 for row in alive[4:]), "the new pods have work"
    assert "✓ only the uids of the pod that died moved: pod 0 died after event 1,500" in done.out
    assert "✓ adding pods moved no uid: pods 4, 5 came after event 1,000" in done.out
    assert "raylet" not in done.out + done.err


def test_the_outcome_as_json(command: Command, log: str, joined: dict[str, str]) -> None:
    done = command.run("demo", "--trace", log, "--pods", "1", "--json", **joined)
    told = json.loads(done.out)
    assert (done.status, told["events"], len(told["pods"])) == (0, EVENTS, 1)
    assert [check["problems"] for check in told["checks"]] == [[], [], []]


@pytest.mark.long  # `make demo` replays it too
@pytest.mark.shared_data
def test_the_real_log_within_a_minute(command: Command) -> None:
    done = command.run("demo", "--trace", str(COLLEGE), "--kill", "--scale-out")
    assert (done.status, done.kept) == (0, 5), done
    assert "every event was handled exactly once: 59,835 events, 59,835 acknowledged" in done.out
    assert done.seconds < 60


def test_the_only_pod_dies_what_was_there_before_stays_and_nothing_is_added(
    command: Command, log: str, joined: dict[str, str]
) -> None:
    with EmbeddedServer() as server:
        ours = {**joined, "RAY_ROUTE_REDIS_URL": server.url}
        before = actors()
        with ray_route.connect("mine", server.url) as client:
            service: dict[str, Any] = {"namespace": "mine", "service": "svc", "replicas": 1}
            with ray_route.deploy(Counter, redis_url=server.url, **service):
                assert client.call("u", "svc", "add", "u") == 1
                done = command.run("demo", "--trace", log, "--kill", "--pods", "1", **ours)
                assert client.call("u", "svc", "add", "u") == 2
            keys = client._session.namespace.store._client.keys("*")
        assert (done.status, done.kept) == (0, 4), done
        assert [row[:2] for row in done.rows if row[0] == "0"] == [["0", "dead"], ["0", "alive"]]
        assert "Ray: joined" in done.out
        assert not [key for key in keys if b"rr:{demo-" in key]
        end_router("mine")
        eventually(lambda: actors() <= before, f"no actor but {before}")


def test_a_namespace_is_cleared_once_its_router_has_ended(ray_session: None) -> None:
    namespace = unique_name()
    with ray_route.connect(namespace) as client:
        pid, _ = ray.get(router_handle(namespace).whereabouts.remote())
        url = client._session.namespace.url
    process = identify(pid)
    clear_namespace(url, namespace, "svc", [])
    assert has_ended(process)


def actors() -> set[str]:
    named = list_named_actors(all_namespaces=True)
    return {actor["name"] for actor in named if actor["namespace"] == RAY_NAMESPACE}


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    """Runs the command in this process, where it must not come as far as to start anything."""

    def start(*_: Any, **__: Any) -> None:
        pytest.fail("the demo starts")

    def run(*words: str) -> Finished:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        out, err = capsys.readouterr()
        return Finished(int(str(ended.value.code)), out, err)

    monkeypatch.setattr(bootstrap, "join_or_start_ray", start)
    return run


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("src dst time\n1 2 3\n1 2\n", ":3: expected `src dst unix-seconds`, found 2 columns"),
        ("1 2 3\n4 5 6\n", ":1: expected a header line"),
        ("", ": is empty; expected a header line"),
        ("\x7fELF\0\0", ":1: expected a header line"),
        (None, ": can't be read: No such file or directory"),
    ],
)
def test_a_bad_log_is_refused_before_anything_starts(
    here: Here, tmp_path: Path, content: str | None, place: str
) -> None:
    path = tmp_path / "log.txt"
    if content is not None:
        path.write_text(content)
    done = here("demo", "--trace", str(path))
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"Error: {path}{place}")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--pods", "0"], "Invalid value for '--pods'"),
        (["--pods", "many"], "Invalid value for '--pods'"),
        (["--what"], "No such option"),
        (["--seed", "1", "--trace", "x"], "give one of them"),
    ],
)
def test_bad_options_are_refused(here: Here, arguments: list[str], reason: str) -> None:
    done = here("demo", *arguments)
    assert (done.status, done.out) == (2, "")
    assert reason in done.err
    assert "Traceback" not in done.err


def test_a_ray_that_does_not_answer_is_one_line(command: Command, log: str) -> None:
    done = command.run("demo", "--trace", log, RAY_ADDRESS="127.0.0.1:1")
    assert (done.status, done.out) == (2, "")
    problem = "RAY_ADDRESS says so; nothing listens there"
    assert done.err == f"Error: no Ray at 127.0.0.1:1 could be joined: {problem}\n"


def test_a_store_that_does_not_answer_is_one_line_and_leaves_nothing(
    command: Command, log: str, joined: dict[str, str]
) -> None:
    url, before = "redis://:secret-word@127.0.0.1:1/0", actors()
    done = command.run("demo", "--trace", log, RAY_ROUTE_REDIS_URL=url, **joined)
    assert done.status == 2
    assert "Error: the store at 127.0.0.1:1 is unavailable" in done.err
    assert "Traceback" not in done.err
    assert "secret-word" not in done.out + done.err
    assert actors() == before


@pytest.mark.parametrize("how", ["twice", "to the command alone"])
def test_an_interrupt_ends_it_with_130_and_cleans_up(
    command: Command, how: str, joined: dict[str, str]
) -> None:
    """On a Ray of its own, too, which must not outlive it."""
    before = actors()
    process = command.start("demo", "--seed", "1", **(joined if how == "twice" else {}))
    assert process.stdout is not None
    assert any("Zipf" in line for line in process.stdout)
    send = os.kill if how == "to the command alone" else os.killpg
    send(process.pid, signal.SIGINT)
    if how == "twice":
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
        send(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith("Interrupted.\n")
    assert "Traceback" not in err
    assert command.processes() == {}
    eventually(lambda: actors() == before, f"the same actors as before: {before}")


def test_the_version(command: Command) -> None:
    done = command.run("--version")
    assert (done.status, done.out) == (0, f"ray-route, version {ray_route.__version__}\n")
