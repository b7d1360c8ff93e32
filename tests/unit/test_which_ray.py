"""Which Ray is joined, on a machine with servers and raylets of every kind."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from helpers import eventually

from ray_route.clock import Deadline
from ray_route.errors import ConfigError, RayUnavailableError, RouteTimeoutError
from ray_route.runtime import local_rays as table
from ray_route.runtime import which_ray as rule
from ray_route.runtime.joining import ensure_ray
from ray_route.runtime.local_rays import LocalRay, local_rays
from ray_route.runtime.waiting import Stage
from ray_route.runtime.which_ray import which_ray

SETTINGS = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100])
Serve = Callable[[bytes | None], str]
Raylet = Callable[..., LocalRay]


def chosen(named: str | None = None) -> str:
    return which_ray(named, Deadline.after(30))


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers that say one thing to whoever comes, or (None) nothing."""
    with ExitStack() as stack:

        def start(says: bytes | None) -> str:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            threading.Thread(target=answer, args=(server, says), daemon=True).start()
            return f"127.0.0.1:{server.getsockname()[1]}"

        yield start


def answer(server: socket.socket, says: bytes | None) -> None:
    connections = []
    while True:
        try:
            connections.append(server.accept()[0])
        except OSError:
            return
        if says is not None:
            connections[-1].sendall(says)


@pytest.fixture
def grpc(serve: Serve) -> str:
    return serve(SETTINGS)


@pytest.fixture
def silent() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def raylet(tmp_path: Path) -> Iterator[Raylet]:
    """Starts processes that look like a Ray's node to the process table."""
    numbers = itertools.count()
    with ExitStack() as stack:

        def start(address: str, *, routes: bool = True, there: bool = True) -> LocalRay:
            folder = tmp_path / f"session_{next(numbers)}_4711"
            if there:
                folder.mkdir()
            if routes and there:
                (folder / table.MARK).mkdir()
            words = ["/opt/ray/raylet", "-c", "read _", f"--session_dir={folder}"]
            process = stack.enter_context(
                subprocess.Popen(
                    [*words, f"--gcs-address={address}"],
                    executable="/bin/sh",
                    stdin=subprocess.PIPE,
                )
            )
            stack.callback(process.kill)
            return LocalRay(address, folder)

        yield start


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Forget the environment; of all raylets of this machine see those of the test alone."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(rule, "read_ray_address", lambda: None)
    own = lambda: [each for each in local_rays() if each.folder.parent == tmp_path]  # noqa: E731
    monkeypatch.setattr(rule, "local_rays", own)


def seen(ray: LocalRay) -> LocalRay:
    """Wait until a process that was started is in the table by its new name."""
    eventually(lambda: ray in local_rays(), f"{ray} is seen")
    return ray


def test_a_new_one_where_there_is_none() -> None:
    assert chosen() == "local"


def test_the_one_that_is_named_rather_than_any_other(
    monkeypatch: pytest.MonkeyPatch, serve: Serve, raylet: Raylet
) -> None:
    by_option, by_variable, by_start, by_chance = (serve(SETTINGS) for _ in range(4))
    seen(raylet(by_chance))
    assert chosen() == by_chance
    monkeypatch.setattr(rule, "read_ray_address", lambda: by_start)
    assert chosen() == by_start
    monkeypatch.setenv("RAY_ADDRESS", by_variable)
    assert chosen() == by_variable
    assert chosen(by_option) == by_option


@pytest.mark.parametrize("word", ["local", "ray-head"])
def test_words_are_left_to_ray(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", word)
    assert chosen() == word


def test_a_ray_client_address_is_looked_at_too(
    monkeypatch: pytest.MonkeyPatch, grpc: str, silent: str
) -> None:
    assert chosen(f"ray://{grpc}") == f"ray://{grpc}"
    with pytest.raises(RayUnavailableError, match="nothing listens there"):
        chosen(f"ray://{silent}")


def test_auto_is_any_that_is_there(
    monkeypatch: pytest.MonkeyPatch, grpc: str, raylet: Raylet
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(RayUnavailableError, match="none in which ray_route is used"):
        chosen()
    seen(raylet(grpc))
    assert chosen() == grpc


@pytest.mark.parametrize("address", ["silent", "127.0.0.1:99999", "no host:1"])
def test_a_name_where_nothing_listens_is_an_error_at_once(
    monkeypatch: pytest.MonkeyPatch, silent: str, address: str
) -> None:
    given = silent if address == "silent" else address
    monkeypatch.setenv("RAY_ADDRESS", given)
    with pytest.raises(RayUnavailableError, match="RAY_ADDRESS says so; nothing listens") as caught:
        chosen()
    assert caught.value.address == given


def test_a_name_of_something_else_is_an_error(serve: Serve) -> None:
    with pytest.raises(RayUnavailableError, match="is no Ray"):
        chosen(serve(b"-ERR unknown command 'PRI'\r\n"))


def test_a_name_that_never_answers_is_an_error_in_time(
    monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    monkeypatch.setattr(rule, "_ANSWER_S", 0.2)
    with pytest.raises(RayUnavailableError, match=r"does not answer within 0\.2 s"):
        chosen(serve(None))


def test_what_ray_start_left_is_forgotten_once_it_has_ended(
    monkeypatch: pytest.MonkeyPatch, silent: str, serve: Serve
) -> None:
    for address in (silent, serve(b"HTTP/1.1 400 Bad Request\r\n")):  # a port in others' hands
        monkeypatch.setattr(rule, "read_ray_address", lambda address=address: address)
        assert chosen() == "local"


def test_what_ray_start_left_is_not_passed_over_while_it_hangs(
    monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    monkeypatch.setattr(rule, "_ANSWER_S", 0.2)
    address = serve(None)
    monkeypatch.setattr(rule, "read_ray_address", lambda: address)
    with pytest.raises(RayUnavailableError, match="`ray start` named it"):
        chosen()


def test_a_ray_without_ray_route_is_left_alone_and_named(grpc: str, raylet: Raylet) -> None:
    seen(raylet(grpc, routes=False))
    assert chosen() == "local"
    assert f"{grpc} (started by process 4711)" in str(rule.no_ray())


def test_of_several_one_must_be_named(serve: Serve, raylet: Raylet) -> None:
    first, second = (seen(raylet(serve(SETTINGS))) for _ in range(2))
    with pytest.raises(ConfigError, match="must say which Ray is meant") as caught:
        chosen()
    assert caught.value.option == "RAY_ADDRESS"
    assert first.address in str(caught.value)
    assert second.address in str(caught.value)


def test_two_nodes_of_one_ray_are_one_ray(grpc: str, raylet: Raylet) -> None:
    for _ in range(2):
        seen(raylet(grpc))
    assert chosen() == grpc


def test_a_ray_of_another_container_is_none_of_this_machine(grpc: str, raylet: Raylet) -> None:
    raylet(grpc, there=False)
    seen(raylet("127.0.0.1:1", routes=False))  # so that the first has been seen, too
    assert chosen() == "local"
    assert grpc not in str(rule.no_ray())


def test_another_users_ray_is_nobodys_choice(
    monkeypatch: pytest.MonkeyPatch, grpc: str, raylet: Raylet
) -> None:
    seen(raylet(grpc))
    me = os.geteuid()
    monkeypatch.setattr(table.os, "geteuid", lambda: me + 1)
    assert chosen() == "local"


def test_a_ray_that_hangs_holds_nobody_beyond_its_deadline(
    monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    """And one thread's long wait is none of another's."""
    monkeypatch.setenv("RAY_ADDRESS", serve(None))
    monkeypatch.setattr(rule, "_ANSWER_S", 60.0)
    # Other tests may have had this process join one.
    monkeypatch.setattr("ray_route.runtime.joining.joined_ray", lambda: None)

    def join(timeout_s: float) -> float:
        begun, stage = time.monotonic(), Stage("Ray")
        deadline = Deadline.after(timeout_s)
        with pytest.raises((RouteTimeoutError, RayUnavailableError)):
            ensure_ray(deadline, stage)
        return time.monotonic() - begun

    patient = threading.Thread(target=join, args=(20,), daemon=True)
    patient.start()
    assert join(0.3) < 10
    assert patient.is_alive()
