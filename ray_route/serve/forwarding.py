"""Passing a request on to its session's home, and the answer back, item by item."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import ray
from ray.serve._private.common import StreamingHTTPRequest

from ray_route.errors import PodUnavailableError
from ray_route.serve.statements import Home, Way, state

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]

_SERVE = "serve"  # the Ray namespace of Serve's actors
# What a request's scope says; servers put into it what can't be pickled, too.
_PLAIN = (
    *("type", "asgi", "http_version", "method", "scheme", "client", "server"),
    *("path", "raw_path", "query_string", "root_path", "headers"),
)


class WholeBody:
    """The messages of a request that has come whole, as Serve's replica asks for them."""

    def __init__(self, messages: list[Message]) -> None:
        self._messages = messages

    async def __call__(self, _: Any) -> bytes:
        """Return all messages, pickled; then nothing: who has sent them ends the request."""
        if not self._messages:
            await asyncio.Event().wait()
        messages, self._messages = self._messages, []
        return pickle.dumps(messages)


class Forwarder:
    """Sends requests to other replicas of a deployment, by the methods that Serve's routers use.

    Args:
        ids: what errors say of the service.
        on_end: is told the name of an actor that Ray calls dead.

    """

    def __init__(self, ids: dict[str, Any], on_end: Callable[[str], None]) -> None:
        self._ids = ids
        self._on_end = on_end
        self._handles: dict[str, Any] = {}

    async def call(self, home: Home, metadata: Any, args: Any, kwargs: Any) -> Any:
        """Return what the home's method returns; raise what it raises."""
        handle = await self._handle(home)
        with self._ended(home):
            answer = handle.handle_request.remote(_forwarded(metadata, home), *args, **kwargs)
            try:
                return await answer
            except asyncio.CancelledError:
                ray.cancel(answer, recursive=False)
                raise

    async def stream(
        self, home: Home, metadata: Any, args: Any, kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        """Yield what the home's generator yields; leaving the stream ends it there."""
        handle = await self._handle(home)
        method = handle.handle_request_streaming.options(num_returns="streaming")
        with self._ended(home):
            items = method.remote(_forwarded(metadata, home), *args, **kwargs)
            try:
                async for item in items:
                    yield await item
            except (asyncio.CancelledError, GeneratorExit):
                ray.cancel(items, recursive=False)
                raise

    async def http(
        self, home: Home, metadata: Any, scope: Any, body: list[Message], send: Send
    ) -> None:
        """Send an HTTP request with its whole body; pass the answer's messages to `send`."""
        plain = {key: scope[key] for key in _PLAIN if key in scope}
        request = StreamingHTTPRequest(plain, receive_asgi_messages=WholeBody(body))
        async with contextlib.aclosing(
            self.stream(home, metadata, (pickle.dumps(request),), {})
        ) as batches:
            async for batch in batches:
                for message in pickle.loads(batch):  # noqa: S301 - from a replica
                    await send(message)

    async def _handle(self, home: Home) -> Any:
        if home.actor not in self._handles:
            try:
                handle = await asyncio.to_thread(ray.get_actor, home.actor, namespace=_SERVE)
            except ValueError as error:
                self._on_end(home.actor)
                raise self._gone(home, error, may_have_run=False) from error
            self._handles[home.actor] = handle
        return self._handles[home.actor]

    @contextlib.contextmanager
    def _ended(self, home: Home) -> Iterator[None]:
        """Make an error of ours of the home's end: Serve would take it for this replica's own."""
        try:
            yield
        except ray.exceptions.RayActorError as error:
            if isinstance(error, ray.exceptions.RayTaskError):
                raise  # the user's code met it
            self._handles.pop(home.actor, None)
            if isinstance(error, ray.exceptions.ActorDiedError):
                self._on_end(home.actor)
            raise self._gone(home, error, may_have_run=True) from error

    def _gone(self, home: Home, error: Exception, *, may_have_run: bool) -> PodUnavailableError:
        first_line = str(error).partition("\n")[0]
        return PodUnavailableError(
            reason=f"its home, {home.actor}, has ended: {first_line}",
            may_have_run=may_have_run,
            pod=home.link.pod,
            **self._ids,
        )


def _forwarded(metadata: Any, home: Home) -> bytes:
    """Return a request's metadata, pickled, that say that it has been passed on."""
    copy = replace(
        metadata,
        internal_request_id=uuid.uuid4().hex,
        is_direct_ingress=False,
        _reserved_slot_token=None,
    )
    state(copy, home, Way.FORWARDED)
    return pickle.dumps(copy)
