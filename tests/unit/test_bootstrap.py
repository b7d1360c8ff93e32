"""Which Ray a command joins."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from ray_route.runtime import bootstrap
from ray_route.runtime.bootstrap import RayStartError, undoing


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def silent() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(bootstrap, "read_ray_address", lambda: None)


def test_none_where_none_is_known():
    assert bootstrap._running_ray() is None


def test_the_one_that_ray_start_has_started(monkeypatch, listening):
    monkeypatch.setattr(bootstrap, "read_ray_address", lambda: listening)
    assert bootstrap._running_ray() == listening


def test_none_where_that_one_is_there_no_more(monkeypatch, silent):
    monkeypatch.setattr(bootstrap, "read_ray_address", lambda: silent)
    assert bootstrap._running_ray() is None


@pytest.mark.parametrize("word", ["auto", "local", "ray://head:10001"])
def test_what_ray_address_says_is_left_to_ray(monkeypatch, word):
    monkeypatch.setenv("RAY_ADDRESS", word)
    assert bootstrap._running_ray() == word


def test_the_one_at_ray_address_rather_than_ray_starts(monkeypatch, listening):
    monkeypatch.setenv("RAY_ADDRESS", listening)
    monkeypatch.setattr(bootstrap, "read_ray_address", lambda: "10.0.0.1:1")
    assert bootstrap._running_ray() == listening


@pytest.mark.parametrize("address", ["silent", "127.0.0.1:99999", "no host:1"])
def test_a_ray_address_where_nothing_answers_is_an_error_at_once(monkeypatch, silent, address):
    given = silent if address == "silent" else address
    monkeypatch.setenv("RAY_ADDRESS", given)
    with pytest.raises(RayStartError, match=f"no Ray answers at RAY_ADDRESS={given}"):
        bootstrap._running_ray()


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_waits_for_what_must_not_be_cut_short():
    done = []

    def work() -> None:
        with bootstrap._interrupts_later():
            interrupt()
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]


def test_undoing_goes_on_through_interrupts_and_errors():
    done = []

    def work() -> None:
        with undoing() as undo:
            undo.callback(done.append, "last")
            undo.callback(interrupt)
            undo.callback(done.append, "first")
            raise LookupError

    with pytest.raises(LookupError):
        work()
    assert done == ["first", "last"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
