"""The sessions of this process: one for each namespace of a Ray, shared by all its users.

A session is opened with its first user and closed with its last.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from ray_route.client.dispatcher import Dispatcher
from ray_route.client.session import Session
from ray_route.clock import Deadline
from ray_route.config import RouteConfig
from ray_route.errors import RayGoneError, RouteTimeoutError
from ray_route.model import check_name
from ray_route.runtime.joined_ray import joined_ray
from ray_route.runtime.joining import exit_at_sigterm
from ray_route.runtime.namespace import Namespace, resolve_url
from ray_route.runtime.waiting import Stage, late, within, within_async
from ray_route.store.namespaces import check_options
from ray_route.store.url import StoreUrl

T = TypeVar("T")

_Key = tuple[Any, ...]


@dataclass(eq=False, slots=True)
class _Shared:
    """A session and how many use it or wait for it; who has the turn opens it."""

    joined: object | None
    users: int = 0
    session: Session | None = None
    turn: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def in_turn(self, deadline: Deadline, stage: Stage) -> Iterator[None]:
        if not self.turn.acquire(timeout=deadline.remaining()):
            raise late(stage.what, deadline)
        try:
            yield
        finally:
            self.turn.release()


_shared: dict[_Key, _Shared] = {}
# Held for a few lines, never over I/O: a slow store or Ray of one thread must not hold up others.
# And never by a user's thread, which an interrupt may end on the way out of a `with`.
_lock = threading.Lock()
_CLOSE_S = 10.0


def open_session(
    namespace: str, redis_url: str | StoreUrl | None, options: dict[str, Any], deadline: Deadline
) -> Session:
    """Return this process's session of a namespace, opening it at first use.

    In a thread of its own, which has all of Ray's and the store's waits, and which no interrupt
    cuts short: raises `RouteTimeoutError` at the deadline, wherever it is then.
    """
    stage, work = _opening(namespace, redis_url, options, deadline)
    return within(deadline, stage, work, undo=_give_back)


async def open_session_async(
    namespace: str, redis_url: str | StoreUrl | None, options: dict[str, Any], deadline: Deadline
) -> Session:
    """Do the same, awaited."""
    stage, work = _opening(namespace, redis_url, options, deadline)
    return await within_async(deadline, stage, work, undo=_give_back)


def open_client(
    make: Callable[[Session], T],
    namespace: str,
    redis_url: str | StoreUrl | None,
    options: dict[str, Any],
    deadline: Deadline,
) -> T:
    """Return what is made of a session, which that gives back: no interrupt comes in between."""
    stage, work = _opening(namespace, redis_url, options, deadline)
    return within(deadline, stage, partial(_made, make, work), undo=_undo)[1]


async def open_client_async(
    make: Callable[[Session], T],
    namespace: str,
    redis_url: str | StoreUrl | None,
    options: dict[str, Any],
    deadline: Deadline,
) -> T:
    """Do the same, awaited."""
    stage, work = _opening(namespace, redis_url, options, deadline)
    return (await within_async(deadline, stage, partial(_made, make, work), undo=_undo))[1]


def _made(make: Callable[[Session], T], work: Callable[[], Session]) -> tuple[Session, T]:
    session = work()
    return session, make(session)


def _undo(made: tuple[Session, Any]) -> None:
    _give_back(made[0])


def _opening(
    namespace: str, redis_url: str | StoreUrl | None, options: dict[str, Any], deadline: Deadline
) -> tuple[Stage, Callable[[], Session]]:
    check_name("namespace", namespace)
    RouteConfig.of(options)
    exit_at_sigterm()
    stage = Stage("Ray")
    return stage, partial(_opened, namespace, redis_url, options, deadline, stage)


def close_session(session: Session, given_back: threading.Lock | None = None) -> None:
    """Give a session back, once for each `open_session`; the last user closes it.

    Whoever may be interrupted, and close again, has a lock that says whether it is given back:
    that is taken once, for ever. In a thread of its own, too; waits for `_CLOSE_S` at most.
    """
    work = partial(_give_back_once, session, given_back or threading.Lock())
    with contextlib.suppress(RouteTimeoutError, RayGoneError):
        within(Deadline.after(_CLOSE_S), Stage("a session to end"), work)


def _give_back_once(session: Session, given_back: threading.Lock) -> None:
    if given_back.acquire(blocking=False):
        _give_back(session)


def _give_back(session: Session) -> None:
    with _lock:
        found = [(key, each) for key, each in _shared.items() if each.session is session]
    for key, shared in found:
        _leave(key, shared)


def _opened(
    namespace: str,
    redis_url: str | StoreUrl | None,
    options: dict[str, Any],
    deadline: Deadline,
    stage: Stage,
) -> Session:
    url = resolve_url(redis_url, deadline, stage)
    _end_those_of_other_rays()
    key = _key(namespace, url)
    shared = _enter(key)
    try:
        stage.what = f"another thread that opens namespace {namespace!r}"
        with shared.in_turn(deadline, stage):
            if shared.session is None:
                shared.session = begun(Namespace(namespace, url, options, deadline, stage))
        check_options(namespace, shared.session.namespace.config, options)
    except BaseException:
        _leave(key, shared)
        raise
    return shared.session


def begun(namespace: Namespace) -> Session:
    """Begin a session of a namespace; both are closed again if anything prevents it."""
    with contextlib.ExitStack() as undo:
        undo.callback(namespace.close)
        session = Session(namespace)
        undo.callback(session.close)
        session.dispatcher = Dispatcher(session)  # here, where no interrupt comes
        session.begin()
        undo.pop_all()
        return session


def _enter(key: _Key) -> _Shared:
    with _lock:
        shared = _shared.setdefault(key, _Shared(joined_ray()))
        shared.users += 1
        return shared


def _leave(key: _Key, shared: _Shared) -> None:
    with _lock:
        shared.users -= 1
        if shared.users > 0 or _shared.get(key) is not shared:
            return
        del _shared[key]
    if shared.session is not None:
        shared.session.close()


def _end_those_of_other_rays() -> None:
    """Close what was opened in a Ray that this process has left; its clients say so."""
    joined = joined_ray()
    with _lock:
        strange = [(key, each) for key, each in _shared.items() if each.joined is not joined]
        over = [(key, each.session) for key, each in strange if each.session is not None]
        for key, _ in over:
            del _shared[key]
    for _, session in over:
        threading.Thread(target=session.close, name="ray_route-close", daemon=True).start()


@atexit.register
def _end_quietly() -> None:
    """Stop reading before Ray's own end stops the server that is read, at the program's exit."""
    for each in list(_shared.values()):
        if each.session is not None:
            each.session.changes.end_soon()


def _key(namespace: str, url: StoreUrl) -> _Key:
    where = (url.kind, url.nodes, url.db, url.service, url.username, url.password)
    return joined_ray(), namespace, *where
