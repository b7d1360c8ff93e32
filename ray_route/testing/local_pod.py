"""One pod of a service without Ray: all that serves its uids is what a real pod has."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from ray_route.clock import Deadline, now
from ray_route.errors import PodUnavailableError
from ray_route.model import RoutingState
from ray_route.pod.agent import PodAgent
from ray_route.pod.endings import EXITS
from ray_route.pod.gate import Gate
from ray_route.pod.hooks import Hook
from ray_route.pod.incarnations import Incarnations
from ray_route.pod.instances import Instances, OneForAll, StateStore
from ray_route.pod.methods import is_async
from ray_route.pod.options import PodOptions
from ray_route.pod.pod_actor import serve_by
from ray_route.pod.pod_lease import PodLease
from ray_route.pod.serving import Manner, methods_of_calls
from ray_route.pod.user_hooks import UserHooks
from ray_route.protocol.calls import Header
from ray_route.testing.local_directory import LocalDirectory, Place
from ray_route.testing.local_mailbox import Mailbox
from ray_route.testing.local_moves import LocalMoves
from ray_route.testing.local_router import LocalNamespace, LocalRouter

T = TypeVar("T")

_END = object()


@dataclass(frozen=True, slots=True)
class LocalRecipe:
    """What the pods of a local service are made of."""

    cls: type
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    store: StateStore | None
    how: PodOptions
    slots: int
    """So many calls run at a time, where uids take no turns."""

    @property
    def manner(self) -> Manner:
        """How a pod serves its calls."""
        return Manner(self.how, on_loop=is_async(self.cls), one_by_one=self.slots == 1)

    def made(self) -> tuple[Any, Instances | OneForAll]:
        """Make what is called, and what has the objects of its uids."""
        base: Any = object if self.how.per_uid else self.cls
        methods = methods_of_calls(self.cls, turns=self.how.has_turns)
        kind = type(self.cls.__name__, (base,), {**methods, "__doc__": self.cls.__doc__})
        if self.how.per_uid:
            return kind(), Instances(self.cls, self.args, self.kwargs, self.store)
        pod = kind(*self.args, **self.kwargs)
        return pod, OneForAll(pod, self.cls)


class LocalLease:
    """The lease of a local pod's index, which never lapses; stands for an `IndexLease`."""

    def __init__(self, index: int, serving: Incarnations) -> None:
        self.index = index
        self.serving = serving
        self.state = RoutingState.READY
        self.stopping = False

    def stop_claiming(self) -> None:
        """It claims nothing."""

    def leave(self, deadline: Deadline) -> list[str]:
        """Release all uids; return those that were not released in time."""
        left = self.serving.release_all(deadline)
        self.serving.end()
        return left


class LocalAgent(PodAgent):
    """The agent of a local pod."""

    def __init__(
        self, namespace: LocalNamespace, service: str, lease: LocalLease, cpu_factor: float
    ) -> None:
        super().__init__(namespace.name, service, lease.index, cpu_factor=cpu_factor)
        self._index_lease: Any = lease
        self._namespace_or_none: Any = namespace


class LocalPod:
    """One life of a pod. Made on the event loop that its calls run on."""

    def __init__(
        self,
        index: int,
        incarnation: int,
        recipe: LocalRecipe,
        namespace: LocalNamespace,
        service: str,
        find_peer: Callable[[str], LocalPeer],
    ) -> None:
        self.index = index
        self.incarnation = incarnation
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._pod, self.target = recipe.made()
        self._threads = ThreadPoolExecutor(recipe.slots, thread_name_prefix="ray_route-local")
        self._is_sync = not (recipe.how.has_turns or is_async(recipe.cls))
        hooks = recipe.manner.begin(self._pod, self.target, self._find_hook)
        lease = PodLease(incarnation, math.inf, now())
        self.serving = Incarnations(namespace, service, index, lease, hooks, find_peer)
        self.agent = LocalAgent(
            namespace, service, LocalLease(index, self.serving), recipe.how.cpu_factor
        )
        self._pod._ray_route_agent = self.agent
        recipe.manner.take_turns(self._pod, self.target, self.agent)

    @property
    def gate(self) -> Gate:
        """Where its calls enter."""
        return self.serving.gate

    def _find_hook(self, owner: Any, name: str, *, on_loop: bool) -> Hook | None:
        """Find a hook, which is to know the agent of this pod among several."""
        found = UserHooks(lambda: self.agent).find(owner, name, on_loop=on_loop)
        if found is None:
            return None

        def here(*args: Any) -> Any:  # in a context of its own, as every hook is
            serve_by(self.agent)
            return found(*args)

        async def there(*args: Any) -> Any:
            serve_by(self.agent)
            return await found(*args)

        return there if on_loop else here

    # Calls.

    async def call(self, header: Header, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return a call's answer, as a pod gives it: a result, or a refusal."""
        called = partial(self._pod._ray_route_call, header, *args, **kwargs)
        if self._is_sync:
            return await self._while_it_lives(self._in_thread(self._context(), called))
        return await self._while_it_lives(called())

    async def stream(
        self, header: Header, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """Yield what a pod yields of a stream."""
        context = self._context()
        items = context.run(self._pod._ray_route_stream, header, *args, **kwargs)
        try:
            while (item := await self._while_it_lives(self._next(context, items))) is not _END:
                yield item
        finally:
            await self._closed(context, items)

    async def _next(self, context: Context, items: Any) -> Any:
        if inspect.isasyncgen(items):
            return await anext(items, _END)
        return await self._in_thread(context, partial(next, items, _END))

    async def _closed(self, context: Context, items: Any) -> None:
        if inspect.isasyncgen(items):
            await items.aclose()
        else:
            await self._in_thread(context, items.close)

    def _context(self) -> Context:
        """Return a context of this pod, in which no call is served."""
        context = Context()
        context.run(serve_by, self.agent)
        return context

    async def _in_thread(self, context: Context, function: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._threads, context.run, function)

    async def _while_it_lives(self, work: Coroutine[Any, Any, T]) -> T:
        """Await what the pod does; raise `PodUnavailableError` if it ends meanwhile."""
        task = self._context().run(self._loop.create_task, work)
        ends: set[asyncio.Future[Any]] = {task, self._ended}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.done():
            return task.result()
        task.add_done_callback(_forgotten)
        reason, where = "the pod was killed", {"pod": self.index, "service": self.agent.service}
        raise PodUnavailableError(reason=reason, may_have_run=True, **where)

    # Ends.

    def kill(self) -> None:
        """End this life, without a hook; what runs of its code runs on, and nobody hears of it."""
        self.serving.end()
        self._forget()

    def stop(self, deadline: Deadline) -> list[str]:
        """Release all uids, with their hooks; return those that were not released in time."""
        left = self.agent.stop(deadline.remaining())
        self._forget()
        return left

    def _forget(self) -> None:
        self._threads.shutdown(wait=False)
        self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
        saver = getattr(self._pod, "_ray_route_saver", None)
        if saver is not None:
            saver.cancel()


def _forgotten(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # nobody is to be told


class LocalPeer:
    """A pod of the same process, as another has it that fetches states; see `pod.peers.Peer`."""

    def __init__(self, pod: LocalPod) -> None:
        self._exports = pod.gate.exports

    def some(self, uids: dict[str, int], within_s: float) -> bytes:  # noqa: ARG002
        """See `Exports.some`."""
        return self._exports.some(uids)

    def one(self, uid: str, epoch: int, within_s: float) -> Any:  # noqa: ARG002
        """See `Exports.one`."""
        return self._exports.one(uid, epoch)


class LocalPods:
    """The pods of a local service, by index; on one event loop."""

    def __init__(
        self, recipe: LocalRecipe, namespace: str, service: str, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.directory = LocalDirectory(namespace, service)
        self.moves = LocalMoves(self.directory)
        router = LocalRouter(self.directory, self.moves)
        self._namespace = LocalNamespace(namespace, self.directory, router)
        self._service = service
        self._recipe = recipe
        self._loop = loop
        self._pods: dict[int, LocalPod] = {}

    def __iter__(self) -> Iterator[LocalPod]:
        return iter(list(self._pods.values()))

    def begin(self, index: int) -> None:
        """Make a pod, or make it again: its next life."""
        last = self._pods.get(index)
        incarnation = 1 if last is None else last.incarnation + 1
        self.directory.places[index] = Place(incarnation, Mailbox())
        making = asyncio.run_coroutine_threadsafe(self._made(index, incarnation), self._loop)
        made = making.result()
        if not isinstance(made, LocalPod):
            raise made
        self._pods[index] = made

    async def _made(self, index: int, incarnation: int) -> LocalPod | BaseException:
        rooms = (self._namespace, self._service, self._peer)
        try:
            return LocalPod(index, incarnation, self._recipe, *rooms)
        except EXITS as error:  # the class's own; raised out of a task it would end the loop
            return error

    def _peer(self, name: str) -> LocalPeer:
        return LocalPeer(self._pods[int(name)])

    def serving(self, index: int, incarnation: int) -> LocalPod | None:
        """Return a pod in one of its lives; None if that is over, or has not begun."""
        pod = self._pods.get(index)
        return pod if pod is not None and pod.incarnation == incarnation else None

    def kill(self, index: int) -> None:
        """End a pod's life, and begin its next one."""
        pod, place = self._pods[index], self.directory.places[index]
        pod.kill()
        place.mailbox.close()
        self.begin(index)

    def stop(self, deadline: Deadline) -> list[str]:
        """Release all, all pods at once; return the uids that were not released in time."""
        with ThreadPoolExecutor(len(self._pods) or 1) as pool:
            left = [uid for some in pool.map(lambda pod: pod.stop(deadline), self) for uid in some]
        for place in self.directory.places.values():
            place.mailbox.close()
        return left
