"""Fenced calls of pods whose uids have turns: coroutines, so that one that waits costs little."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from ray_route.clock import Deadline
from ray_route.errors import FencedError, RouteError
from ray_route.pod.agent import PodAgent
from ray_route.pod.call_order import CallOrder, TurnPlace
from ray_route.pod.current_link import under
from ray_route.pod.due import check_due, due_of, is_over, late, patience_s
from ray_route.pod.endings import EXITS
from ray_route.pod.leaving import leaving, own_refusal
from ray_route.pod.methods import (
    is_generator,
    is_interleaved,
    is_stream,
    lacks_value,
    method_of,
    raised,
    sendable,
    stream_error,
    stream_of,
)
from ray_route.pod.streams import checked
from ray_route.pod.turns import Beside, Turn, Turns
from ray_route.pod.user_threads import UserThreads
from ray_route.protocol.calls import (
    BatchedCall,
    Header,
    Refused,
    SendAgain,
    StreamEnd,
    chain_of,
    unpacked,
)
from ray_route.runtime.running_hooks import check_not_awaited

# So often calls that wait are asked whether they are refused by now.
_LOOK_S = 0.1
_FLUSH_S = 0.02
_END = object()

_Begun = Turn | Beside
_Find = Callable[[Any, str], Callable[..., Any]]


class Target(Protocol):
    """Has the objects that serve uids."""

    cls: type

    def of(self, uid: str) -> Any:
        """Return the object that serves a uid that is held."""


class TurnCalls:
    """Serves the calls of one pod, each in its turn.

    `threads` runs the methods; None: they run on the loop, coroutines or not.
    """

    def __init__(self, agent: PodAgent, target: Target, threads: UserThreads | None) -> None:
        self._agent = agent
        self._target = target
        self._threads = threads
        self._begun = partial(_begun, agent, waits=threads is not None)
        self._orders = CallOrder()
        self._turns = Turns()
        self.running = self._turns.running
        self._looks = False
        self.called: set[str] | None = None
        """Uids that have had a call since whoever saves their states looked, if anybody does."""

    # Waiting.

    async def _begin(
        self, place: TurnPlace, header: Header, find: _Find, *, lacks: bool
    ) -> _Begun | SendAgain:
        """Wait for a call's turn, and have it admitted; raises its refusal."""
        uid, epoch, incarnation, name = header[:4]
        due = due_of(header)
        if not await place.turn_async() or lacks:
            return place.send_again()
        check_due(due, self._agent.service, uid, name)
        is_beside = is_interleaved(find(self._target.cls, name))
        check_not_awaited(chain_of(header), self._agent.namespace, self._agent.service, uid)
        turn = await self._turn(place, header, due, is_beside=is_beside)
        if turn is None:
            return place.busy()
        try:
            if place.is_cut():
                turn.end()
                return place.send_again()
            enter = partial(self._agent.gate.enter_async, in_turn=turn.is_within, due=due)
            await enter(uid, epoch, incarnation)
        except BaseException:
            turn.end()
            raise
        return turn

    async def _turn(
        self, place: TurnPlace, header: Header, due: Deadline | None, *, is_beside: bool
    ) -> _Begun | None:
        """Wait for a call's turn; None if too many do."""
        uid, epoch, incarnation, name = header[:4]
        chain = chain_of(header)
        if is_beside:
            place.passes()
            return self._turns.beside(uid, chain)
        refusal = partial(self._agent.gate.refusal, uid, epoch, incarnation)
        ticket = self._turns.join(uid, name, chain, place.run, refusal)
        if ticket is None:
            return None
        place.passes()
        self._look_out()
        try:
            return await ticket.wait(patience_s(due))
        except asyncio.TimeoutError:
            raise late(due, self._agent.service, uid, name, self._behind(uid)) from None

    def _behind(self, uid: str) -> str:
        had = [f"{method}, for {ran_s:.1f} s" for method, ran_s in self._turns.running(uid)]
        return f"; the turn has {', within it '.join(had)}" if had else ""

    def _look_out(self) -> None:
        """While calls wait, look whether they are refused by now: time alone may do that."""
        if self._turns.waiting and not self._looks:
            self._looks = True
            asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._looks = False
        self._turns.turn_away(None)
        self._look_out()

    async def flush(self) -> None:
        """Return when no call waits for its turn: in a pod that has stopped, all are refused."""
        while self._turns.waiting:
            self._turns.turn_away(None)
            await asyncio.sleep(_FLUSH_S)

    # Running.

    async def call(self, header: Header, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call if this pod owns its uid."""
        place = TurnPlace(self._orders, header)
        try:
            turn = await self._begin(place, header, method_of, lacks=lacks_value(args, kwargs))
        except RouteError as error:
            return place.turned_away(error)
        finally:
            place.leave()
        if type(turn) is SendAgain:
            return turn
        return await self._run(header, turn, args, kwargs)

    async def _run(self, header: Header, turn: Any, args: Any, kwargs: Any) -> Any:
        uid, epoch, _, name = header[:4]
        try:
            method = self._method(uid, name, args, kwargs)
            due = due_of(header)
            begun = partial(self._begun, header, due, method)
            result = await self._user(header, turn, due, begun)
            await self._agent.gate.recheck_async(uid, epoch)
        except FencedError as error:
            return own_refusal(self._agent, error)
        except EXITS as error:
            return Refused(leaving(self._agent, uid, name, error, may_have_run=True))
        finally:
            self._end(uid, turn)
        return Refused(stream_error(name)) if is_stream(result) else result

    async def in_turn(self, uid: str, name: str, function: Callable[[], Any]) -> Any:
        """Run a function of the pod's own in a turn of a uid, as its methods are run.

        Raises what it raises, and `FencedError`, having run nothing, if the uid is not held. What
        it raises for the process ends that in order, and is raised as `PodUnavailableError`.
        """
        held = self._agent.gate.held
        with held.lock:
            entry = held.entries.get(uid)
            epoch = 0 if entry is None else entry.epoch
        header: Header = [uid, epoch, held.lease.incarnation, name]
        turn = await self._turn(TurnPlace(self._orders, header), header, None, is_beside=False)
        if not isinstance(turn, Turn):  # too many wait
            raise FencedError(reason="its pod is busy", may_have_run=False)
        try:
            await self._agent.gate.enter_async(uid, epoch, held.lease.incarnation)
        except BaseException:
            turn.end()
            raise
        try:
            begun = partial(self._begun, header, None, function)
            return await self._user(header, turn, None, begun)
        except EXITS as error:
            raise leaving(self._agent, uid, name, error, may_have_run=True) from error
        finally:
            self._agent.gate.leave(uid)
            turn.end()

    def _method(self, uid: str, name: str, args: Any, kwargs: Any) -> partial[Any]:
        return partial(getattr(self._target.of(uid), name), *args, **kwargs)

    def _end(self, uid: str, turn: _Begun) -> None:
        """End a call; a release that waits for it comes before the next one's turn."""
        if self.called is not None:
            self.called.add(uid)
        self._agent.gate.leave(uid)
        turn.end()

    async def _user(
        self, header: Header, turn: _Begun, due: Deadline | None, function: Callable[[], Any]
    ) -> Any:
        """Run user code for a call, in its thread if it needs one."""
        chain = (*chain_of(header), turn.number)
        serving = partial(under, self._agent, header, due, chain)

        def run() -> Any:
            with serving():
                return function()

        if self._threads is not None:
            return await self._threads.run(run, is_within=bool(chain_of(header)))
        result = run()
        if inspect.isawaitable(result):
            with serving():
                return await result
        return result

    async def call_many(self, calls: list[BatchedCall]) -> list[Any]:
        """Run many calls, each in its turn; their outcomes come together."""
        running = (self.call(header, args, kwargs) for header, args, kwargs in calls)
        outcomes = await asyncio.gather(*running, return_exceptions=True)
        return [
            sendable(self._sent(header[3], outcome), header[3])
            for (header, _, _), outcome in zip(calls, outcomes, strict=True)
        ]

    def _sent(self, name: str, outcome: Any) -> Any:
        failed = isinstance(outcome, BaseException)
        return raised(self._target.cls, name, outcome) if failed else outcome

    # Streams.

    async def stream(
        self, header: Header, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """Yield what the user's generator does, in one turn, and then a `StreamEnd`.

        A `Refused` or `SendAgain` instead says that nothing has run, if it comes first; a `Refused`
        later that no more comes.
        """
        place = TurnPlace(self._orders, header)
        try:
            turn = await self._begin(place, header, stream_of, lacks=False)
        except RouteError as error:
            yield Refused(error)
            return
        if isinstance(turn, SendAgain):
            yield turn
            return
        last: Any = StreamEnd()
        items = self._items(header, turn, args, kwargs)
        try:
            async for item in items:
                yield item
        except FencedError as error:
            last = own_refusal(self._agent, error)
        except EXITS as error:
            last = Refused(leaving(self._agent, header[0], header[3], error, may_have_run=True))
        finally:
            try:
                await items.aclose()
            except EXITS as error:  # whoever closes it early is told nothing any more
                leaving(self._agent, header[0], header[3], error, may_have_run=True)
            finally:
                self._end(header[0], turn)
        yield last

    async def _items(
        self, header: Header, turn: _Begun, args: Any, kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        """Yield the items of a user's generator, or a refusal, each once the uid is still held."""
        uid, epoch = header[:2]
        method = self._method(uid, header[3], args, kwargs)
        items = await self._generator(header, turn, method)
        if type(items) is Refused:
            yield items
            return
        has_run = not is_generator(method.func)
        try:
            while (item := await self._next(header, turn, items, has_run=has_run)) is not _END:
                if type(item) is Refused:
                    yield item
                    return
                has_run = True
                await self._agent.gate.recheck_async(uid, epoch)
                yield item
            await self._agent.gate.recheck_async(uid, epoch)
        finally:
            await self._close(header, turn, items)

    async def _generator(self, header: Header, turn: _Begun, method: Callable[[], Any]) -> Any:
        """Return what the user's method does, or a refusal if that is none, or comes too late."""
        # What runs later has no deadline: each item has its own.
        begun = partial(self._begun, header, due_of(header), method)
        return checked(await self._user(header, turn, None, begun), header[3])

    async def _next(self, header: Header, turn: _Begun, items: Any, *, has_run: bool) -> Any:
        """Return the next item; if nothing has run before, perhaps a refusal, as of a call."""
        step = items.__anext__ if inspect.isasyncgen(items) else partial(next, items, _END)
        if not has_run:
            step = partial(self._begun, header, due_of(header), step)
        try:
            return await self._user(header, turn, None, step)
        except StopAsyncIteration:
            return _END

    async def _close(self, header: Header, turn: _Begun, items: Any) -> None:
        if inspect.isasyncgen(items):
            with suppress(RuntimeError):  # it is closed already, or closes itself
                await items.aclose()
        elif inspect.isgenerator(items):
            await self._user(header, turn, None, items.close)


def _begun(
    agent: PodAgent,
    header: Header,
    due: Deadline | None,
    function: Callable[[], Any],
    *,
    waits: bool,
) -> Any:
    """Run user code, unless its call has waited too long for its thread, or to be acquired.

    Raises `FencedError` if its uid was lost while it waited for its thread.
    """
    uid, epoch, _, name = header[:4]
    if is_over(due):
        return Refused(late(due, agent.service, uid, name))
    if waits:
        agent.gate.recheck(uid, epoch, has_run=False)
    return function()


async def _call(pod: Any, header: Header, /, *args: Any, **kwargs: Any) -> Any:
    return await pod._ray_route_turns.call(header, args, kwargs)


async def _call_packed(pod: Any, packed: list[Any] | bytes) -> Any:
    header, args = unpacked(packed)
    return await pod._ray_route_turns.call(header, tuple(args), {})


async def _call_many(pod: Any, calls: list[BatchedCall]) -> list[Any]:
    many: list[Any] = await pod._ray_route_turns.call_many(calls)
    return many


async def _flush(pod: Any) -> None:
    """Return when every call that was queued before has begun, or has been refused."""
    await pod._ray_route_turns.flush()


async def _stream(
    pod: Any, header: Header, /, *args: Any, **kwargs: Any
) -> AsyncGenerator[Any, None]:
    items = pod._ray_route_turns.stream(header, args, kwargs)
    try:
        async for item in items:
            yield item
    finally:
        await items.aclose()


METHODS = {
    "_ray_route_call": _call,
    "_ray_route_call_packed": _call_packed,
    "_ray_route_call_many": _call_many,
    "_ray_route_flush": _flush,
    "_ray_route_stream": _stream,
}
