"""The system may have no more threads for a while: then nothing is half begun, or begun later."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import ManualClock, eventually
from test_admission_rules import Pod
from test_gate_without_a_router import EPOCH, Namespace
from test_states import give_up
from test_unshowable_errors import Owner

from ray_route.clock import now
from ray_route.errors import PodUnavailableError
from ray_route.model import Link
from ray_route.pod.arrivals import Arrivals
from ray_route.pod.gate import Gate
from ray_route.pod.holdings import Holdings
from ray_route.pod.hooks import Hooks
from ray_route.pod.next_work import NextWork
from ray_route.pod.pod_lease import PodLease
from ray_route.pod.release import Releases
from ray_route.pod.releaser import Releaser
from ray_route.protocol.commands import Take, Taken
from ray_route.runtime.threads import Threads

Starts = Callable[[bool], None]

ENDS = """
import atexit, threading, time
from ray_route.runtime.threads import Threads

def begin():
    threads.begin(time.sleep, 0.3)
    threads.begin(print, "ran")

threads = Threads(1, "some")
atexit.register(print, "what it needs is closed")
daemon = threading.Thread(target=begin, daemon=True)
daemon.start()
daemon.join()
"""
STARTS = """
import threading, time
from ray_route.runtime.threads import Threads

def late():
    time.sleep(0.3)
    print("what it has started, too")

def start():
    threading.Thread(target=late).start()
    has_started.set()

threads, has_started = Threads(1, "some"), threading.Event()
threads.begin(start)
has_started.wait()  # Python 3.12 starts no thread once the main thread has ended
"""
# A process may live on by a thread: its services do, too.
LIVES_ON = """
import threading
from ray_route.runtime.threads import Threads

def serve():
    threading.main_thread().join()
    for thread in threading.enumerate():
        if thread.name == "ray_route-end":
            thread.join(0.3)  # it goes on, and so do all others
    threads.begin(print, "ran")

threads = Threads(1, "some")
threads.begin(print, "before")
threading.Thread(target=serve).start()
"""
BEGINS_LATE = """
import threading
from ray_route.runtime.threads import Threads

def serve():
    threading.main_thread().join()
    try:
        threads.begin(print, "ran")
    except RuntimeError:  # from Python 3.12 on there are no more
        print("ran")

threads = Threads(1, "some")
threading.Thread(target=serve).start()
"""
# To join it does more than wait, as it often does.
OWN_JOIN = """
import threading
from ray_route.runtime.threads import Threads

class Service(threading.Thread):
    over = threading.Event()

    def run(self):
        print("stopped early" if self.over.wait(0.3) else "served")

    def join(self, timeout=None):
        self.over.set()
        super().join(timeout)

Threads(1, "some").begin(print, "ran")
Service().start()
"""
TWO_END = """
import threading
from ray_route.runtime.threads import Threads

start, interrupted = threading.Thread.start, []

def begun(self):
    start(self)
    if not interrupted:
        interrupted.append(self.name)
        raise KeyboardInterrupt

threading.Thread.start = begun
threads = Threads(1, "some")
try:
    threads.begin(print, "never")
except KeyboardInterrupt:
    print(interrupted)
threads.begin(print, "ran")
"""
INTERRUPTED = """
import threading
from ray_route.runtime.threads import Threads, _Line, _Thread

threads = Threads(1, "some")
threads.begin(print, "ran")
never = _Thread(_Line(), "its start was interrupted")
threading._limbo[never] = never
"""


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Starts]:
    """Say whether pools of threads may start more; all else may."""
    start = threading.Thread.start

    def set_(are_there: bool) -> None:
        def begun(self: threading.Thread) -> None:
            if not are_there and self.name.rpartition("_")[0].startswith("ray_route-"):
                raise RuntimeError("can't start new thread")
            start(self)

        monkeypatch.setattr(threading.Thread, "start", begun)

    yield set_
    monkeypatch.undo()


def named(name: str) -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith(name)]


class TestThreads:
    def test_what_has_no_thread_is_never_run(self, starts: Starts):
        threads, ran = Threads(1, "ray_route-some"), []
        starts(False)
        with pytest.raises(RuntimeError, match="new thread"):
            threads.begin(ran.append, "first")
        starts(True)
        threads.begin(ran.append, "second")
        eventually(lambda: ran, "it runs")
        assert ran == ["second"]
        threads.end()

    def test_nor_is_it_where_others_run(self, starts: Starts):
        threads, ran, free = Threads(2, "ray_route-some"), [], threading.Event()
        threads.begin(free.wait)
        starts(False)
        with pytest.raises(RuntimeError, match="new thread"):
            threads.begin(ran.append, "first")
        starts(True)
        free.set()
        threads.begin(ran.append, "second")
        eventually(lambda: ran, "it runs")
        assert ran == ["second"]
        threads.end()

    @pytest.mark.parametrize("are_there", [0, 1])
    def test_afterwards_as_much_runs_at_once_as_before(self, starts: Starts, are_there: int):
        threads, free = Threads(4, "ray_route-some"), threading.Event()
        for _ in range(are_there):
            threads.begin(free.wait)
        starts(False)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="new thread"):
                threads.begin(print)
        starts(True)
        free.set()
        threads.begin((alone := threading.Event()).set)
        assert alone.wait(60)
        for _ in range(2):
            beside = threading.Event()
            all_of_them = threading.Barrier(4, beside.set, timeout=30)
            for _ in range(4):
                threads.begin(all_of_them.wait)
            assert beside.wait(60)
        threads.end()

    def test_when_they_have_ended_nothing_is_begun_and_what_waits_runs(self):
        threads, ran, free = Threads(1, "ray_route-ended"), [], threading.Event()
        threads.begin(free.wait, 60)
        threads.begin(ran.append, "it")
        threads.end()
        with pytest.raises(RuntimeError):
            threads.begin(print)
        assert named("ray_route-ended")
        free.set()
        eventually(lambda: not named("ray_route-ended"), "they end")
        assert ran == ["it"]

    def test_when_they_are_dropped_they_end(self):
        threads, both = Threads(2, "ray_route-dropped"), threading.Barrier(3)
        for _ in range(2):
            threads.begin(both.wait, 60)
        both.wait(60)
        assert len(named("ray_route-dropped")) == 2
        del threads
        eventually(lambda: not named("ray_route-dropped"), "they end")

    def test_whatever_work_raises_leaves_its_thread_to_others(self):
        threads, ran = Threads(1, "ray_route-some"), []
        threads.begin(sys.exit)
        threads.begin(ran.append, "it")
        eventually(lambda: ran, "it runs")
        threads.end()

    @pytest.mark.parametrize(
        ("program", "told"),
        [
            (ENDS, ["ran", "what it needs is closed"]),
            (STARTS, ["what it has started, too"]),
            (LIVES_ON, ["before", "ran"]),
            (BEGINS_LATE, ["ran"]),
            (INTERRUPTED, ["ran"]),
            (OWN_JOIN, ["ran", "served"]),
            (TWO_END, ["['ray_route-end']", "ran"]),
        ],
        ids=[
            "by a daemon",
            "which starts threads",
            "after main",
            "all after main",
            "beside a start",
            "own join",
            "two end",
        ],
    )
    def test_what_was_begun_has_ended_before_the_process_does(self, program: str, told: list[str]):
        command = [sys.executable, "-c", program]
        ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        assert (ran.stdout.splitlines(), ran.stderr) == (told, "")


def gate_of(hooks: Hooks) -> tuple[Gate, Namespace]:
    namespace: Any = Namespace()
    return Gate(namespace, "chat", Holdings(0, PodLease(7, 600.0, now()), 600.0), hooks), namespace


@pytest.mark.parametrize("of", ["reads", "hooks"])
def test_a_uid_that_could_not_be_acquired_is_by_the_next_call(starts: Starts, of: str) -> None:
    acquired: list[str] = []
    gate, _ = gate_of(Hooks(on_acquire=acquired.append))
    if of == "hooks":
        readers = gate._confirming._readers
        readers.begin(lambda: None)
        eventually(lambda: not readers._line.left, "its thread for reads is free")
    starts(False)
    with pytest.raises(PodUnavailableError, match="new thread") as caught:
        gate.enter("u", EPOCH, 7)
    assert not caught.value.may_have_run
    starts(True)
    gate.enter("u", EPOCH, 7)
    assert acquired == ["u"]


def test_a_uid_that_could_not_be_read_before_it_is_given_up_is_read_later(starts: Starts) -> None:
    gate, namespace = gate_of(Hooks())
    releases, to_do = Releases(gate.held), NextWork(gate.held)
    threads = Threads(1, "ray_route-some")
    gate.enter("u", EPOCH, 7)
    gate.leave("u")
    gate.held.entries["u"].until = 0.0  # its lease is over
    namespace.link = Link(0, 7, EPOCH, persistent=False, lease_s=0.0)
    releases.release(1, {"u": EPOCH}, 600.0, closes=True, router=1)
    (work,) = to_do.to_confirm()
    starts(False)
    gate.confirm_all({work.uid: work.epoch}, threads.begin)
    assert to_do.to_confirm() == [work]


@pytest.mark.parametrize("takes_turns", [True, False])
def test_uids_whose_hooks_have_no_thread_are_given_up_later(
    starts: Starts, takes_turns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[str] = []
    turn = threading.Lock() if takes_turns else None
    gate, namespace = gate_of(hooks := Hooks(on_release=released.append, turn=turn))
    uids = ["u", "v", "w"]
    for uid in uids:
        gate.enter(uid, EPOCH, 7)
        gate.leave(uid)
    there: Any = namespace
    there.ask_now = lambda *_, **__: None
    releases = Releases(gate.held)
    begun = threading.Event()

    class Slow(Releaser):
        """It tries at once, and says so."""

        def _begin_hooks(self) -> None:
            try:
                super()._begin_hooks()
            except RuntimeError:
                begun.set()
                raise

        def _report_use(self) -> None:
            pass

    starts(False)
    releases.release(1, dict.fromkeys(uids, EPOCH), 600.0, closes=True, router=1)
    releaser = Slow(there, gate, hooks, releases, lambda: ("chat", 0, 7))
    assert begun.wait(60)
    assert not released
    starts(True)
    eventually(lambda: sorted(released) == uids, "their hooks run")
    releaser.end()


def test_a_hook_whose_limit_nobody_can_watch_runs_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[object] = []
    hooks = Hooks(on_release=lambda uid: f"the state of {uid}", release_s=10.0)

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        hooks.start("on_release", "u", lambda error, state: ended.append((error, state)))
    assert ended == [(None, "the state of u")]


def test_a_uid_that_has_arrived_and_has_no_thread_is_acquired_later(starts: Starts) -> None:
    gate, namespace = gate_of(Hooks(on_acquire=lambda *_: None, carries=True))
    releases, to_do = Releases(gate.held), NextWork(gate.held)
    threads = Threads(1, "ray_route-some")
    gate.enter("u", EPOCH, 7)
    gate.leave("u")
    releases.release(1, {"u": EPOCH}, 600.0, closes=True, router=1)
    (work,) = to_do.take(10)
    assert to_do.may_begin(work)
    to_do.ended("u", EPOCH, "its state")
    releases.settled({"u": (EPOCH, EPOCH + 1)})
    # Its lease is over: it is read by itself.
    namespace.link = Link(0, 7, EPOCH + 1, persistent=False, lease_s=0.0, replaced=EPOCH)
    (work,) = to_do.to_acquire()
    starts(False)
    gate.acquire_all({work.uid: work.epoch}, lambda *_: None, threads.begin)
    assert to_do.to_acquire() == [work]


@pytest.mark.parametrize("of", ["take", "states"])
def test_a_state_for_which_there_is_no_thread_is_told_of_at_once(
    monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    """Nobody serves its uid until then."""
    owner, target, start = Pod(ManualClock()), Pod(ManualClock()), threading.Thread.start
    give_up(owner, "u", state="it")
    target.held.entries.clear()

    def begun(self: threading.Thread) -> None:
        if self.name == f"ray_route-{of}":
            raise RuntimeError("can't start new thread")
        start(self)

    class Packed(Owner):
        """It has had its own threads when there are no more."""

        def some(self, *args: Any) -> bytes:
            packed = super().some(*args)
            monkeypatch.setattr(threading.Thread, "start", begun)
            return packed

    if of == "take":
        monkeypatch.setattr(threading.Thread, "start", begun)
    told: list[Taken] = []
    arrivals = Arrivals(target.held, Hooks(carries=True), lambda _: Packed(owner))
    arrivals.begin(5, Take({"u": 100}, "owner", 60.0), told.extend)
    eventually(lambda: told, "it is told of")
    assert "new thread" in told[0].problem
    assert not told[0].is_final
