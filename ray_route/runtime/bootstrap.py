"""Ray and a store for as long as a command needs them, and nothing left behind afterwards."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.util import list_named_actors

from ray_route.clock import Deadline
from ray_route.config import RouteConfig
from ray_route.errors import RouteError
from ray_route.protocol.names import EMBEDDED_SERVER, RAY_NAMESPACE, router_name
from ray_route.runtime.given_up import GivenUpError, await_given_up
from ray_route.runtime.joining import Wish, ensure_ray
from ray_route.runtime.namespace import resolve_url
from ray_route.runtime.process_ids import POLL_S, has_ended, identify
from ray_route.runtime.unseen import answer_of
from ray_route.runtime.waiting import Stage, within
from ray_route.store.connect import Store
from ray_route.store.keys import Keys
from ray_route.store.scripts import plain_call
from ray_route.store.url import StoreUrl

logger = logging.getLogger(__name__)

_JOIN_S = 60.0
_STORE_S = 60.0
_STOP_S = 5.0
# For what is just being made by work that an interrupt has given up.
_GIVEN_UP_S = 30.0
_KEYS_PER_CALL = 1_000


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Ray and the store as a command found or made them."""

    ray_is_ours: bool
    store_is_ours: bool
    url: StoreUrl

    def __str__(self) -> str:
        cpus = int(ray.cluster_resources().get("CPU", 0))
        ray_is = "started for this" if self.ray_is_ours else "joined"
        store_is = "embedded, started for this" if self.store_is_ours else "joined"
        return f"Ray: {ray_is}, {cpus} CPUs; Redis: {self.url.address}, {store_is}"


@contextlib.contextmanager
def undoing() -> Iterator[contextlib.ExitStack]:
    """Provide an exit stack that a second Ctrl-C does not cut short.

    Nothing is taken away while what a first one has interrupted may still make it. An interrupt
    stays one, though not all can be taken away.
    """
    undo = contextlib.ExitStack()
    try:
        try:
            yield undo
        except KeyboardInterrupt:
            _undo_all_the_same(undo)
            raise
        except BaseException:
            _undo(undo)
            raise
        else:
            _undo(undo)
    except KeyboardInterrupt:  # it may have come on the way into all that
        _undo_all_the_same(undo)
        raise


def _undo_all_the_same(undo: contextlib.ExitStack) -> None:
    try:
        _undo(undo)
    except RouteError as error:
        logger.warning("something is left behind: %s", error)


def _undo(undo: contextlib.ExitStack) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        await_given_up(_GIVEN_UP_S)
        undo.close()
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def bootstrap(address: str | None = None) -> Iterator[Bootstrap]:
    """Provide Ray (that at `address`, if given) and a store; at the end stop what was not there."""
    with undoing() as undo:
        undo.callback(ray.shutdown)  # of a Ray that was joined it only takes leave
        ray_is_ours = join_or_start_ray(address)
        had_store = _actor(EMBEDDED_SERVER) is not None
        if not had_store:
            undo.callback(_stop_unused_store)
        deadline, stage = Deadline.after(_STORE_S), Stage("the store")
        url = within(deadline, stage, partial(resolve_url, None, deadline, stage))
        yield Bootstrap(ray_is_ours, not had_store and _actor(EMBEDDED_SERVER) is not None, url)


def join_or_start_ray(address: str | None = None) -> bool:
    """Join the Ray that is meant (see `which_ray`), or start one; say whether it started one.

    Raises `RayUnavailableError`, `ConfigError` if it is not clear which is meant.
    """
    _ensure(address, may_start=True, include_dashboard=False)
    # Ray puts its starter's process id at the end of a session's name.
    name: str = ray.get_runtime_context().get_session_name()
    return name.endswith(f"_{os.getpid()}")


def join_ray(address: str | None) -> None:
    """Do the same, but start none."""
    _ensure(address, may_start=False)


def _ensure(address: str | None, *, may_start: bool, **options: Any) -> None:
    deadline, stage = Deadline.after(_JOIN_S), Stage("a Ray")
    quietly = {"log_to_driver": False, "logging_level": logging.ERROR}
    with _interrupts_later() as interrupts:
        wish = Wish(address, may_start, {**quietly, **options}, interrupts.before_start)
        ensure_ray(deadline, stage, wish, interrupts.check)


class _Interrupts:
    """A Ctrl-C on the way into a Ray. One that is joined is left at once, whatever it waits for.

    One that is started is waited for: half-way, it would leave processes of its own behind.
    """

    def __init__(self) -> None:
        self.came = False
        self._starts = False

    def note(self, *_: object) -> None:
        """Take in that it came."""
        self.came = True

    def check(self) -> None:
        """Raise it, unless a Ray is being started."""
        if self.came and not self._starts:
            raise KeyboardInterrupt

    def before_start(self) -> None:
        """Take in that a Ray is started; raises `GivenUpError` if it came before."""
        self._starts = True  # before the look: one of the two sees the other
        if self.came:
            raise GivenUpError


@contextlib.contextmanager
def _interrupts_later() -> Iterator[_Interrupts]:
    """Hold back a Ctrl-C until the end of this, or until it is asked for."""
    held = _Interrupts()
    before = signal.signal(signal.SIGINT, held.note)
    try:
        yield held
    finally:
        signal.signal(signal.SIGINT, before)
        if held.came:
            raise KeyboardInterrupt


def clear_namespace(url: StoreUrl, namespace: str, service: str, uids: Iterable[str]) -> None:
    """Stop a namespace's router and delete its keys, once its pods are stopped.

    Only links of `uids` are deleted. Raises `StoreUnavailableError` where that can't be done.
    """
    _stop_router(namespace)
    keys = Keys(namespace, RouteConfig().shards)
    names = [keys.link(keys.shard(uid), service, uid) for uid in uids]
    names += [keys.counter(shard) for shard in range(keys.shards)]
    names += [keys.pods(service), keys.services, keys.log, keys.meta]
    store = Store(url, retries=0)  # who is interrupted does not want to wait
    try:
        for start in range(0, len(names), _KEYS_PER_CALL):
            _delete(store, names[start : start + _KEYS_PER_CALL])
    finally:
        store.close()


def _delete(store: Store, names: list[str]) -> None:
    for reply in store.run([plain_call("DEL", name) for name in names]):
        if isinstance(reply, RouteError):
            raise reply


def _stop_router(namespace: str) -> None:
    """Stop a router, and see its process end: until then it writes back what is deleted.

    On another node than this, Ray's word that it has ended has to do.
    """
    router = _actor(router_name(namespace))
    process = None
    if router is not None:
        with contextlib.suppress(ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
            pid, node = answer_of(router.whereabouts.remote(), _STOP_S)
            if node == ray.get_runtime_context().get_node_id():
                process = identify(pid)
    _stop_actor(router_name(namespace))
    deadline = Deadline.after(_STOP_S)
    while process and not has_ended(process) and deadline.remaining():
        time.sleep(POLL_S)


def _stop_unused_store() -> None:
    """Stop the embedded server that came with this command, unless others use it by now."""
    named = list_named_actors(all_namespaces=True)
    ours = [actor["name"] for actor in named if actor["namespace"] == RAY_NAMESPACE]
    if not set(ours) - {EMBEDDED_SERVER}:
        _stop_actor(EMBEDDED_SERVER)


def _stop_actor(name: str) -> None:
    """Kill an actor for good, and wait until Ray has seen it end: it writes nothing any more."""
    handle = _actor(name)
    if handle is not None:
        ray.kill(handle, no_restart=True)
        with contextlib.suppress(ray.exceptions.RayError):
            answer_of(handle.__ray_ready__.remote(), _STOP_S)


def _actor(name: str) -> Any:
    try:
        return ray.get_actor(name, namespace=RAY_NAMESPACE)
    except ValueError:
        return None
