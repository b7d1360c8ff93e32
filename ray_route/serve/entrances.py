"""The ways into a replica's user code, with its door before each of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any

from ray_route.errors import RouteError
from ray_route.serve.answers import Message, Send, answer, code_of_grpc
from ray_route.serve.arrival import Arrival, arrived
from ray_route.serve.bodies import Body
from ray_route.serve.door import Door, NotEnteredError
from ray_route.serve.forwarding import Forwarder
from ray_route.serve.serves_replica import GENERATOR, HTTP, METHOD, ServesReplica, Wrap
from ray_route.serve.session_ids import content_length, has_json
from ray_route.serve.statements import Home

_FORWARDED_BYTES = 64 << 20


class Entrances:
    """Has every request of a session judged before it runs; all others go straight through."""

    def __init__(self, door: Door, serves: ServesReplica, forwarder: Forwarder) -> None:
        self._door = door
        self._serves = serves
        self._forwarder = forwarder

    def wraps(self) -> dict[str, Wrap]:
        """Return what goes around each of Serve's ways, by its name."""
        return {
            METHOD: self._around_method,
            GENERATOR: self._around_generator,
            HTTP: self._around_http,
        }

    def _judged(self) -> Arrival | None:
        """Return the request at hand if it is to be judged."""
        arrival = arrived()
        guarded = arrival is not None and arrival.session_id and self._door.is_guarded
        return arrival if guarded else None

    # By handles and gRPC.

    def _around_method(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def enter(metadata: Any, args: Any, kwargs: Any) -> Any:
            arrival = self._judged()
            if arrival is None:
                return run(metadata, args, kwargs)
            return self._call(run, arrival, args, kwargs)

        return enter

    async def _call(self, run: Callable[..., Any], arrival: Arrival, args: Any, kwargs: Any) -> Any:
        home = await self._enter(arrival)
        try:
            while home is not None:
                try:
                    with self._serves.slot_given_back(but=NotEnteredError):
                        return await self._forwarder.call(home, arrival.metadata, args, kwargs)
                except NotEnteredError as refused:
                    home = await self._enter_again(arrival, home, refused)
            return await run(arrival.metadata, args, kwargs)
        finally:
            self._door.leave(arrival)

    def _around_generator(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def enter(metadata: Any, args: Any, kwargs: Any) -> Any:
            arrival = self._judged()
            if arrival is None:
                return run(metadata, args, kwargs)
            return self._stream(run, arrival, args, kwargs)

        return enter

    async def _stream(
        self, run: Callable[..., Any], arrival: Arrival, args: Any, kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        home = await self._enter(arrival)
        try:
            while home is not None:
                passed_on = self._forwarder.stream(home, arrival.metadata, args, kwargs)
                try:
                    with self._serves.slot_given_back(but=NotEnteredError):
                        async with contextlib.aclosing(passed_on):
                            async for item in passed_on:
                                yield item
                except NotEnteredError as refused:  # before its first item
                    home = await self._enter_again(arrival, home, refused)
                else:
                    return
            async with contextlib.aclosing(run(arrival.metadata, args, kwargs)) as items:
                async for item in items:
                    yield item
        finally:
            self._door.leave(arrival)

    async def _enter(self, arrival: Arrival) -> Home | None:
        try:
            return await self._door.enter(arrival)
        except RouteError as error:
            if arrival.metadata.is_grpc_request:
                code_of_grpc(arrival.metadata, error)
            raise

    async def _enter_again(
        self, arrival: Arrival, home: Home, refused: NotEnteredError
    ) -> Home | None:
        # Its place first: who has entered the gate is waited for by moves.
        await self._serves.wait_for_slot()
        return await self._door.enter_again(arrival, home, refused)

    # By HTTP.

    def _around_http(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def enter(info: Any, scope: Any, receive: Any, send: Send) -> Any:
            arrival = self._judged() or self._nameless()
            if arrival is None:
                return run(info, scope, receive, send)
            request = _Request(run, info, scope, receive, send)
            return self._serves.as_serve_awaits(self._http(request, arrival))

        return enter

    def _nameless(self) -> Arrival | None:
        """Return the request at hand if its session is still to be found."""
        arrival = arrived()
        nameless = arrival is not None and not arrival.session_id and self._door.ids
        return arrival if nameless else None

    async def _http(self, request: _Request, arrival: Arrival) -> None:
        home = None
        try:
            if not arrival.session_id:
                await self._name(request, arrival)
            if arrival.session_id and self._door.is_guarded:
                home = await self._door.enter(arrival)
            while home is not None:
                try:
                    await self._pass_on(request, arrival, home)
                except NotEnteredError as refused:
                    home = await self._enter_again(arrival, home, refused)
                else:
                    return
            await request.run_here()
        except RouteError as error:
            if request.has_run or request.is_answered or isinstance(error, NotEnteredError):
                raise
            await answer(request.scope, request.send, error)
        finally:
            self._door.leave(arrival)
            request.body.end()

    async def _name(self, request: _Request, arrival: Arrival) -> None:
        """Find the session in what the request says, or in its body."""
        ids = self._door.ids
        found = ids.in_scope(request.scope)
        in_body = found is None and ids.read_bodies and has_json(request.scope)
        if in_body:
            found = ids.in_body(await self._whole_body(request))
        if found is not None:
            self._door.name(arrival, found, in_body=in_body)

    async def _whole_body(self, request: _Request) -> bytes:
        """Return a request's body; nothing of one that is over the limit."""
        limit = self._door.options.body_limit_bytes
        if (content_length(request.scope) or 0) <= limit:
            await self._serves.on_user_loop(request.body.read(limit))
            if request.body.is_whole and request.body.size <= limit:
                return request.body.content
        self._door.overlooked(limit)
        return b""

    async def _pass_on(self, request: _Request, arrival: Arrival, home: Home) -> None:
        await self._serves.on_user_loop(request.body.read(_FORWARDED_BYTES))
        if not request.body.is_whole:
            raise self._door.refusal(arrival, home, f"more than {_FORWARDED_BYTES} bytes")
        with self._serves.slot_given_back(but=NotEnteredError):
            await self._forwarder.http(
                home, arrival.metadata, request.scope, request.body.messages, request.send
            )


class _Request:
    """One HTTP request or web socket, and what has become of it."""

    def __init__(
        self, run: Callable[..., Any], info: Any, scope: Any, receive: Any, send: Send
    ) -> None:
        self._run, self._info, self._receive, self._send = run, info, receive, send
        self.scope = scope
        self.body = Body(receive)
        self.has_run = self.is_answered = False

    async def send(self, message: Message) -> None:
        """Answer."""
        self.is_answered = True
        await self._send(message)

    async def run_here(self) -> None:
        """Run the user's code."""
        self.has_run = True
        receive = self.body if self.body.messages else self._receive
        await self._run(self._info, self.scope, receive, self._send)
