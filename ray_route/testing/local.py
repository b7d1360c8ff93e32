"""A service without Ray, for unit tests of the class of its pods."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from ray_route.client.handles import CallOptions
from ray_route.clock import Deadline
from ray_route.errors import InvalidInputError
from ray_route.model import Link, check_uid
from ray_route.pod.instances import StateStore
from ray_route.pod.memory import epochs_held
from ray_route.pod.options import PodOptions
from ray_route.pod.user_threads import AT_ONCE
from ray_route.runtime.futures import Outcome
from ray_route.runtime.given_up import begin, give_up
from ray_route.testing.local_calls import Caller, LocalUid
from ray_route.testing.local_pod import LocalPod, LocalPods, LocalRecipe

T = TypeVar("T")

_NAMESPACE, _SERVICE = "local", "local"
_TIMEOUT_S = 30.0
_STOP_S = 30.0
_POLL_S = 0.001


class LocalService:
    """A service in this process. Made by `local`."""

    def __init__(self, cls: type, pods: LocalPods, loop: asyncio.AbstractEventLoop) -> None:
        self._cls = cls
        self._pods = pods
        self._directory = self._pods.directory
        self._moves = self._pods.moves
        self._caller = Caller(self._pods, loop)

    def __getitem__(self, uid: str) -> LocalUid:
        """Return the handle of one uid."""
        return LocalUid(self._caller, self._cls, uid, CallOptions())

    # To look at.

    def pod_of(self, uid: str) -> int | None:
        """Return the pod that a uid is linked to; None if to none."""
        link = self.link(uid)
        return None if link is None else link.pod

    def link(self, uid: str) -> Link | None:
        """Return the link of a uid, which has its epoch; None if there is none."""
        return self._directory.peek(check_uid(uid))

    def uids(self, pod: int) -> set[str]:
        """Return the uids that a pod holds."""
        return set(epochs_held(self._pod(pod).serving.held))

    def object_of(self, uid: str) -> Any:
        """Return the object that serves a uid, as it is; None if there is none.

        With one object per pod it is that of the uid's pod.
        """
        link = self.link(uid)
        pod = None if link is None else self._pods.serving(link.pod, link.incarnation)
        if pod is None or uid not in epochs_held(pod.serving.held):
            return None
        return pod.target.of(uid)

    # To be done; in threads of their own: an interrupt ends the wait for it, and nothing half-way.

    def move(self, uid: str, pod: int | None = None, *, timeout: float = _TIMEOUT_S) -> Link:
        """Move a uid to a pod (None: to another), with its hooks and its state.

        Raises `StateNotMovedError` if its state can't be moved, and `PodUnavailableError` if its
        calls do not end in time: then it stays.
        """
        deadline = Deadline.after(timeout)
        return _undisturbed(partial(self._moves.move, check_uid(uid), pod, deadline))

    def fence(self, uid: str, *, timeout: float = _TIMEOUT_S) -> None:
        """Give a uid to another pod, whose owner learns of it afterwards.

        As if its pod had been thought dead: nothing of it is saved, a call that runs gets
        `FencedError` though it may have run, `on_lost` is called when its calls have ended. Returns
        when the owner knows.
        """
        _undisturbed(partial(self._fence, uid, timeout))

    def _fence(self, uid: str, timeout: float) -> None:
        old = self._directory.take_away(check_uid(uid))
        pod = None if old is None else self._pods.serving(old.pod, old.incarnation)
        if old is None or pod is None:
            return
        held = pod.serving.held
        pod.gate.admission.denied(uid, old.epoch, held.term)
        running = held.entries.get(uid)
        if running is None or not running.running:
            self._wait(lambda: uid not in held.entries, f"on_lost of uid {uid!r}", timeout)

    def idle(self, uid: str, *, timeout: float = _TIMEOUT_S) -> None:
        """Have a uid's pod give it up as one that nobody has called for long: with its hook.

        Returns when its link is gone. Nothing happens while a call of it runs, or if its link is
        persistent: then `RouteTimeoutError` is raised.
        """
        _undisturbed(partial(self._idle, uid, timeout))

    def _idle(self, uid: str, timeout: float) -> None:
        link = self.link(uid)
        pod = None if link is None else self._pods.serving(link.pod, link.incarnation)
        if pod is None:
            return
        held = pod.serving.held
        with held.lock:
            entry = held.entries.get(uid)
            if entry is not None:
                entry.used_at = -math.inf
                held.look_at(uid, entry)
        self._wait(lambda: self.link(uid) != link, f"uid {uid!r} to be given up", timeout)

    def remove(self, uid: str, *, timeout: float = _TIMEOUT_S) -> bool:
        """End a uid's session: its hook runs, then its link goes. Return if it had a link.

        Raises `PodUnavailableError` if its calls do not end in time: then it stays.
        """
        deadline = Deadline.after(timeout)
        return _undisturbed(partial(self._moves.remove, check_uid(uid), deadline))

    def kill(self, pod: int) -> None:
        """End a pod as `kill -9` does, and make it again: empty, in its next life.

        Its uids are placed anew at their next call. Code that runs in it runs on, for a thread
        can't be killed, and its caller gets `PodUnavailableError`.
        """
        self._pod(pod)
        _undisturbed(partial(self._pods.kill, pod))

    def close(self) -> list[str]:
        """Release all uids, with their hooks; return those whose hooks did not end within 30 s."""
        return _undisturbed(partial(self._pods.stop, Deadline.after(_STOP_S)))

    def _pod(self, index: int) -> LocalPod:
        for pod in self._pods:
            if pod.index == index:
                return pod
        indexes = [pod.index for pod in self._pods]
        raise InvalidInputError(argument="pod", value=index, reason=f"is none of {indexes}")

    @staticmethod
    def _wait(condition: Callable[[], bool], what: str, timeout: float) -> None:
        deadline = Deadline.after(timeout)
        while not condition():
            deadline.check(what)
            time.sleep(_POLL_S)


@contextmanager
def local(
    cls: type,
    *,
    pods: int = 2,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    per_uid: bool = False,
    turns: bool = False,
    max_concurrency: int | None = None,
    release_s: float | None = None,
    idle_s: float | None = None,
    on_unpicklable: str = "keep",
    store: StateStore | None = None,
    save_every_s: float = 10.0,
    cpu_factor: float = 0.0,
) -> Iterator[LocalService]:
    """Serve an unmodified class of pods in this process: without Ray, without Redis.

    All arguments are as those of `deploy`, with `pods` for its `replicas`, and `max_concurrency`
    for that of `ray_actor_options`. What admits calls, gives them their turns, runs hooks, keeps
    objects and carries their states is the code that real pods run; the rest of a service is
    simulated. What differs is in `docs/howto/testing.md`. At the end all uids are released.

    Raises `InvalidInputError` for a class or options that `deploy` would refuse, and what the
    class's `__init__` raises.
    """
    threads = AT_ONCE if max_concurrency is None else max_concurrency
    how = PodOptions(
        cpu_factor=cpu_factor,
        grace_s=_STOP_S,
        exit_when_fenced=False,
        release_s=release_s,
        on_unpicklable=on_unpicklable,
        per_uid=per_uid,
        turns=turns,
        idle_s=idle_s,
        save_every_s=save_every_s,
        threads=threads,
    )
    how.check(cls, args, kwargs or {}, store)
    recipe = LocalRecipe(cls, args, kwargs or {}, store, how, max_concurrency or 1)
    opened: Outcome[_Open] = Outcome()
    try:
        try:
            begin(opened, partial(_Open, recipe, pods))
            yield opened.result().service
        finally:
            _close(opened)
    except BaseException:  # it may have been an interrupt on the way into that; it is closed once
        _close_soon(opened)
        raise


def _undisturbed(work: Callable[[], T]) -> T:
    """Do something that no interrupt of who waits for it reaches."""
    done: Outcome[T] = Outcome()
    begin(done, work)
    return done.result()


class _Open:
    """A service and the event loop that its calls run on, in a thread of its own."""

    def __init__(self, recipe: LocalRecipe, pods: int) -> None:
        self._loop = asyncio.new_event_loop()
        name = "ray_route-local"
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()
        self._is_closed = threading.Lock()
        self._pods = LocalPods(recipe, _NAMESPACE, _SERVICE, self._loop)
        self.service = LocalService(recipe.cls, self._pods, self._loop)
        try:
            for index in range(pods):
                self._pods.begin(index)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release all, and end the loop; once."""
        if not self._is_closed.acquire(blocking=False):
            return
        try:
            self._pods.stop(Deadline.after(_STOP_S))
        finally:
            asyncio.run_coroutine_threadsafe(_cancelled_all(), self._loop).result(_STOP_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


def _close(opened: Outcome[_Open]) -> None:
    """Close a service; one that is not open yet as soon as it is: nobody waits for that."""
    if not opened.done():
        _close_soon(opened)
    elif opened.exception() is None:
        _undisturbed(opened.result().close)


def _close_soon(opened: Outcome[_Open]) -> None:
    give_up(opened, lambda it: begin(Outcome(), it.close))


async def _cancelled_all() -> None:
    """Cancel what runs on this loop, and let it end."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.wait(others, timeout=1) if others else None
