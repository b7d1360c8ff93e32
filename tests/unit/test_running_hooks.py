from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from helpers import eventually

from ray_route.pod.hooks import Hooks
from ray_route.pod.states import State
from ray_route.runtime.metrics import POD_HOOKS_OVER, Meter

WITHIN_S = 10.0

caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="nobody")


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    running = asyncio.new_event_loop()
    thread = threading.Thread(target=running.run_forever, daemon=True)
    thread.start()
    yield running
    running.call_soon_threadsafe(running.stop)
    thread.join(WITHIN_S)
    running.close()


@pytest.fixture
def meter() -> Meter:
    return Meter("ns")


class Told:
    """A `done` that remembers: it must be told exactly once."""

    def __init__(self) -> None:
        self.reply: Future[BaseException | None] = Future()

    def __call__(self, error: BaseException | None, _: object = None) -> None:
        self.reply.set_result(error)  # fails the second time

    @property
    def yet(self) -> bool:
        return self.reply.done()

    def error(self) -> BaseException | None:
        return self.reply.result(WITHIN_S)


def test_a_state_is_read_off_the_loop_and_what_fails_there_is_told(
    loop: asyncio.AbstractEventLoop,
) -> None:
    read_in: set[int] = set()
    ran_in: set[int] = set()
    goes_on = threading.Event()

    def prepare(uid: str, state: Any) -> Any:
        read_in.add(threading.get_ident())
        if uid == "waits":
            goes_on.wait(60)
        return {"of": state[uid]}

    async def on_acquire(uid: str, state: Any) -> None:
        ran_in.add(threading.get_ident())
        assert state["of"] in (1, 2)

    hooks = Hooks(on_acquire, loop=loop, carries=True, prepare=prepare)
    waits, told, fails = Told(), Told(), Told()
    hooks.start("on_acquire", "waits", waits, State({"waits": 1}))
    hooks.start("on_acquire", "u", told, State({"u": 2}))
    assert told.error() is None, "one that is slow to be read stops nobody"
    hooks.start("on_acquire", "another", fails, State({}))
    assert isinstance(fails.error(), KeyError)
    goes_on.set()
    assert waits.error() is None
    assert ran_in == {asyncio.run_coroutine_threadsafe(_where(), loop).result(WITHIN_S)}
    assert not ran_in & read_in


async def _where() -> int:
    return threading.get_ident()


def start(hooks: Hooks, name: str = "on_release", uid: str = "u") -> Told:
    told = Told()
    hooks.start(name, uid, told)
    return told


def measured(hooks: Hooks, meter: Meter) -> Hooks:
    hooks.measure(meter, "chat", 3)
    return hooks


def over(meter: Meter) -> int:
    return meter.counts[POD_HOOKS_OVER.name, ("chat", "3")]


class Steps:
    """A hook that tells where it is, and waits there."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cancelled = threading.Event()
        self.go_on = threading.Event()

    def plain(self, _: str) -> None:
        self.begun.set()
        assert self.go_on.wait(WITHIN_S)

    async def coroutine(self, _: str) -> None:
        self.begun.set()
        await self.wait()

    async def slow_to_cancel(self, uid: str) -> None:
        """End only when it is let go, as one that cleans up does."""
        try:
            await self.coroutine(uid)
        except asyncio.CancelledError:
            self.cancelled.set()
            await self.wait()
            raise

    async def wait(self) -> None:
        assert await asyncio.to_thread(self.go_on.wait, WITHIN_S)


class TestAnyHook:
    @pytest.mark.parametrize("name", ["on_acquire", "on_release", "on_lost"])
    def test_one_that_is_not_there_has_ended_well_at_once(self, name: str):
        assert start(Hooks(), name).error() is None

    def test_each_is_called_by_its_own_name_with_its_uid(self):
        seen: list[tuple[str, str]] = []
        names = ("on_acquire", "on_release", "on_lost")
        hooks = Hooks(*(lambda uid, name=name: seen.append((name, uid)) for name in names))
        for name in names:
            assert start(hooks, name, f"for {name}").error() is None
        assert seen == [(name, f"for {name}") for name in names]

    def test_as_many_run_at_once_as_calls_may(self, loop: asyncio.AbstractEventLoop):
        assert Hooks(turn=threading.Lock()).at_once == 1
        assert Hooks().at_once > 1
        assert Hooks(loop=loop).at_once > 1


class TestPlainHooks:
    def test_it_runs_where_it_was_started_under_the_turn_of_who_started_it(self):
        turn, seen = threading.RLock(), []

        def is_free() -> bool:
            got: list[bool] = []
            other = threading.Thread(target=lambda: got.append(turn.acquire(blocking=False)))
            other.start()
            other.join(WITHIN_S)
            return got[0]

        hooks = Hooks(
            on_release=lambda _: seen.append((threading.get_ident(), is_free())), turn=turn
        )
        with hooks.turn:
            told = start(hooks)
        assert told.error() is None
        assert seen == [(threading.get_ident(), False)]

    def test_without_turns_anybody_may_start_one_at_any_time(self):
        hooks = Hooks(on_release=lambda _: None)
        assert not hooks.takes_turns
        with hooks.turn, hooks.turn:
            assert start(hooks).error() is None

    @pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
    def test_what_it_raises_is_told(self, error: BaseException):
        def fail(_: str) -> None:
            raise error

        assert start(Hooks(on_acquire=fail), "on_acquire").error() is error

    def test_it_is_never_in_the_context_of_a_call(self):
        seen: list[str] = []

        def hook(_: str) -> None:
            seen.append(caller.get())
            caller.set("hook")

        caller.set("call")
        assert start(Hooks(on_acquire=hook), "on_acquire").error() is None
        assert seen == ["nobody"]
        assert caller.get() == "call"

    def test_one_over_its_limit_is_logged_and_counted_and_waited_for(
        self, meter: Meter, caplog: pytest.LogCaptureFixture
    ):
        steps, told = Steps(), Told()
        hooks = measured(Hooks(on_release=steps.plain, release_s=0.01), meter)
        thread = threading.Thread(target=hooks.start, args=("on_release", "u", told))
        with caplog.at_level(logging.ERROR):
            thread.start()
            eventually(lambda: over(meter) == 1, "it is counted")
            assert not told.yet
            steps.go_on.set()
            assert told.error() is None
        thread.join(WITHIN_S)
        assert over(meter) == 1
        (record,) = caplog.records
        assert "'u'" in record.getMessage()
        assert "pod 3 of chat" in record.getMessage()
        assert "0.01 s" in record.getMessage()

    def test_one_within_its_limit_is_not(self, meter: Meter, caplog: pytest.LogCaptureFixture):
        timers = threading.active_count()
        hooks = measured(Hooks(on_release=lambda _: None, release_s=60), meter)
        assert start(hooks).error() is None
        assert over(meter) == 0
        assert caplog.records == []
        eventually(lambda: threading.active_count() <= timers, "nothing goes on counting")

    def test_the_limit_is_of_on_release_alone(self, meter: Meter):
        steps, told = Steps(), Told()
        hooks = measured(Hooks(steps.plain, None, steps.plain, release_s=0.0), meter)
        steps.go_on.set()
        for name in ("on_acquire", "on_lost"):
            told = start(hooks, name)
            assert told.error() is None
        assert over(meter) == 0


class TestHooksOfALoop:
    def test_it_runs_there_and_is_told_when_it_has_ended(self, loop: asyncio.AbstractEventLoop):
        steps, seen = Steps(), []

        async def hook(uid: str) -> None:
            seen.append((uid, asyncio.get_running_loop()))
            await steps.coroutine(uid)

        told = start(Hooks(on_release=hook, loop=loop))  # returns, though it waits
        assert steps.begun.wait(WITHIN_S)
        assert not told.yet
        steps.go_on.set()
        assert told.error() is None
        assert seen == [("u", loop)]

    def test_many_run_side_by_side(self, loop: asyncio.AbstractEventLoop):
        all_here = asyncio.Event()
        here: list[str] = []

        async def hook(uid: str) -> None:
            here.append(uid)
            if len(here) == 5:
                all_here.set()
            await all_here.wait()

        hooks = Hooks(on_release=hook, loop=loop)
        all_told = [start(hooks, uid=str(number)) for number in range(5)]
        assert [told.error() for told in all_told] == [None] * 5

    def test_a_plain_function_runs_there_too(self, loop: asyncio.AbstractEventLoop):
        seen: list[Any] = []
        hooks = Hooks(on_release=lambda _: seen.append(asyncio.get_running_loop()), loop=loop)
        assert start(hooks).error() is None
        assert seen == [loop]

    def test_whatever_can_be_awaited_is(self, loop: asyncio.AbstractEventLoop):
        class Awaitable:
            ended = False

            def __await__(self) -> Iterator[Any]:
                yield from asyncio.sleep(0).__await__()
                self.ended = True

        it = Awaitable()
        assert start(Hooks(on_release=lambda _: it, loop=loop)).error() is None
        assert it.ended

    @pytest.mark.parametrize("release_s", [None, 60.0])
    @pytest.mark.parametrize("error", [ValueError("no"), TimeoutError("its own")])
    def test_what_it_raises_is_told(
        self,
        loop: asyncio.AbstractEventLoop,
        meter: Meter,
        error: BaseException,
        release_s: float | None,
    ):
        async def fail(_: str) -> None:
            raise error

        hooks = measured(Hooks(on_release=fail, loop=loop, release_s=release_s), meter)
        told = start(hooks).error()
        assert (type(told), str(told)) == (type(error), str(error))
        assert over(meter) == 0

    def test_one_that_is_cancelled_by_others_has_not_ended_well(
        self, loop: asyncio.AbstractEventLoop
    ):
        """Else a uid would count as acquired."""

        async def cancelled(_: str) -> None:
            raise asyncio.CancelledError

        error = start(Hooks(on_acquire=cancelled, loop=loop), "on_acquire").error()
        assert isinstance(error, Exception)  # whoever waits for it is not cancelled itself
        assert "cancelled" in str(error)

    def test_it_is_never_in_the_context_of_a_call(self, loop: asyncio.AbstractEventLoop):
        seen: list[str] = []

        async def hook(_: str) -> None:
            seen.append(caller.get())

        caller.set("call")
        hooks = Hooks(on_acquire=hook, on_release=lambda _: seen.append(caller.get()), loop=loop)
        start(hooks, "on_acquire").error()
        start(hooks, "on_release").error()
        assert seen == ["nobody", "nobody"]

    def test_one_over_its_limit_is_cancelled_logged_counted_and_waited_for(
        self,
        loop: asyncio.AbstractEventLoop,
        meter: Meter,
        caplog: pytest.LogCaptureFixture,
    ):
        steps = Steps()
        hooks = Hooks(on_release=steps.slow_to_cancel, loop=loop, release_s=0.01)
        with caplog.at_level(logging.ERROR):
            told = start(measured(hooks, meter))
            assert steps.cancelled.wait(WITHIN_S)
            assert over(meter) == 1  # at its limit, not at its end
            assert not told.yet
            steps.go_on.set()
            assert told.error() is None
        assert over(meter) == 1
        assert ["'u'" in record.getMessage() for record in caplog.records] == [True]

    @pytest.mark.parametrize("swallows", [True, False])
    def test_what_it_does_of_its_cancellation_hides_nothing(
        self, loop: asyncio.AbstractEventLoop, meter: Meter, *, swallows: bool
    ):
        error = ValueError("could not clean up")

        async def hook(_: str) -> None:
            try:
                await asyncio.sleep(60)  # never ends by itself
            except asyncio.CancelledError:
                if not swallows:
                    raise error from None

        hooks = Hooks(on_release=hook, loop=loop, release_s=0.01)
        assert start(measured(hooks, meter)).error() is (None if swallows else error)
        assert over(meter) == 1

    def test_the_limit_is_of_on_release_alone(self, loop: asyncio.AbstractEventLoop, meter: Meter):
        steps = Steps()
        hooks = measured(Hooks(steps.coroutine, loop=loop, release_s=0.01), meter)
        acquiring = start(hooks, "on_acquire")
        assert steps.begun.wait(WITHIN_S)
        beyond = asyncio.sleep(0.03)  # past the limit, which is none of it
        asyncio.run_coroutine_threadsafe(beyond, loop).result(WITHIN_S)
        assert not acquiring.yet
        steps.go_on.set()
        assert acquiring.error() is None
        assert over(meter) == 0

    def test_a_plain_function_over_its_limit_is_logged_and_counted(
        self, loop: asyncio.AbstractEventLoop, meter: Meter
    ):
        steps = Steps()
        hooks = measured(Hooks(on_release=steps.plain, loop=loop, release_s=0.01), meter)
        told = start(hooks)
        eventually(lambda: over(meter) == 1, "it is counted")
        assert not told.yet
        steps.go_on.set()
        assert told.error() is None
