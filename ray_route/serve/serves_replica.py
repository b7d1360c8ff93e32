"""Serve's own object in a replica's process, by its private names: nobody else knows them.

Those of Ray 2.60. `missing` says which of them a newer Ray has no more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]

METHOD, GENERATOR, HTTP = "call_user_method", "call_user_generator", "_call_http_entrypoint"
"""By these of its wrapper of the user's class does Serve run a request."""

_OF_REPLICA = ("_wrap_request", "_semaphore", "_user_callable_wrapper")
_OF_WRAPPER = (METHOD, GENERATOR, HTTP, "_user_code_event_loop")
_IN_THREAD = "_run_user_code_in_separate_thread"
_SERVES_OWN_DEFAULT_S = 20.0


class ServesReplica:
    """What ray_route needs of Serve's replica.

    Args:
        actor: the instance of Serve's actor class in this process.

    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._replica = actor._replica_impl  # noqa: SLF001
        self._wrapper = getattr(self._replica, "_user_callable_wrapper", None)

    # Its end.

    @property
    def is_stopping(self) -> bool:
        """True once Serve has asked it to stop."""
        return bool(getattr(self._replica, "_shutting_down", False))

    @property
    def grace_s(self) -> float:
        """How long its requests may take then."""
        config = getattr(self._replica, "_deployment_config", None)
        return float(getattr(config, "graceful_shutdown_timeout_s", _SERVES_OWN_DEFAULT_S))

    @property
    def is_busy(self) -> bool:
        """True while it runs a request."""
        return bool(self._actor.get_num_ongoing_requests())

    def have_wait(self, leave: Callable[[], Awaitable[None]]) -> None:
        """Have Serve end the process not before the replica has left its service.

        It kills an idle one after `graceful_shutdown_wait_loop_s`, however busy the machine is; one
        that was about to leave would then count as dead. Without this private name the replica
        leaves when its process ends, which the router notices.
        """
        shut_down = getattr(self._replica, "perform_graceful_shutdown", None)
        if shut_down is None:
            return

        async def shut_down_and_leave() -> None:
            await shut_down()
            await leave()

        self._replica.perform_graceful_shutdown = shut_down_and_leave

    # Its requests.

    @property
    def missing(self) -> list[str]:
        """The names without which no request can be seen here."""
        of_replica = [name for name in _OF_REPLICA if not hasattr(self._replica, name)]
        return of_replica + [name for name in _OF_WRAPPER if not hasattr(self._wrapper, name)]

    def see(self, arriving: Callable[[Any], None]) -> None:
        """Have `arriving` called with the metadata of every request, in the request's context."""
        wrap_request = self._replica._wrap_request  # noqa: SLF001

        def seen(metadata: Any, *args: Any, **kwargs: Any) -> Any:
            arriving(metadata)
            return wrap_request(metadata, *args, **kwargs)

        self._replica._wrap_request = seen  # noqa: SLF001

    def guard(self, wraps: dict[str, Wrap]) -> None:
        """Put something around the ways on which Serve runs requests."""
        for name, wrap in wraps.items():
            setattr(self._wrapper, name, wrap(getattr(self._wrapper, name)))

    def as_serve_awaits(self, work: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
        """Return what Serve expects of a way into the user's code: a task if that has a thread."""
        return asyncio.ensure_future(work) if getattr(self._wrapper, _IN_THREAD, False) else work

    async def on_user_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something on the event loop of the user's code, and wait for it."""
        assert self._wrapper is not None
        loop = self._wrapper._user_code_event_loop  # noqa: SLF001
        if loop is asyncio.get_running_loop():
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))

    @contextlib.contextmanager
    def slot_given_back(self, but: type[Exception]) -> Iterator[None]:
        """Let others have the place of a request that is waited for elsewhere.

        Two full replicas that wait for each other's places would wait for ever. After an error of
        the type `but` it has no place yet: see `wait_for_slot`.
        """
        semaphore = self._replica._semaphore  # noqa: SLF001
        semaphore.release()
        is_left = False
        try:
            yield
        except but:
            is_left = True
            raise
        finally:
            if not is_left:
                semaphore._value += 1  # noqa: SLF001 - at once: Serve is about to release it

    async def wait_for_slot(self) -> None:
        """Have a request that was waited for elsewhere wait for a place, to run here after all."""
        semaphore = self._replica._semaphore  # noqa: SLF001
        try:
            await semaphore.acquire()
        except BaseException:
            semaphore._value += 1  # noqa: SLF001 - as above
            raise
