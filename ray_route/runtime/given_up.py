"""Work in threads of its own that whoever waited for it has given up: it makes nothing more.

An interrupt reaches whoever waits, never the work itself. So before what it may have made is taken
away it is told to make no more, and what it is just making is waited for.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from ray_route.clock import Deadline

T = TypeVar("T")

_POLL_S = 0.02

# Work that nobody waits for any more, until what it made is undone.
_given_up: set[Future[Any]] = set()
# Of that, what is to make nothing more; and work that makes just now what outlives this process.
_unwanted: set[Future[Any]] = set()
_making: set[Future[Any]] = set()
_of_thread = threading.local()


class GivenUpError(Exception):
    """The work of this thread is to make nothing more: what it makes would be left behind."""


def begin(done: Future[T], work: Callable[[], T], *, makes: bool = False) -> None:
    """Begin work in a thread that settles `done`; with `makes`, it is `making` until then."""
    args = (done, partial(_made, done, work) if makes else work, (*_works(), done))
    threading.Thread(target=_settle, args=args, name="ray_route-within", daemon=True).start()


def _settle(done: Future[T], work: Callable[[], T], works: tuple[Future[Any], ...]) -> None:
    _of_thread.works = works
    try:
        done.set_result(work())
    except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
        done.set_exception(error)
    finally:
        _making.discard(done)


def _made(done: Future[Any], work: Callable[[], T]) -> T:
    """Do work that is `making` until `done` is settled and undone, if that is given up.

    Said by its own thread: an interrupt of who begins it might leave it said of what never ran.
    """
    _making.add(done)  # before the look: one of the two sees the other
    check_wanted()
    return work()


def _works() -> tuple[Future[Any], ...]:
    """Return the work that this thread does, and that for which it is done."""
    works: tuple[Future[Any], ...] = getattr(_of_thread, "works", ())
    return works


def check_wanted() -> None:
    """Raise `GivenUpError` if what this thread makes from now on would be left behind."""
    if not _unwanted.isdisjoint(_works()):
        raise GivenUpError


@contextlib.contextmanager
def making() -> Iterator[None]:
    """Make something that outlives this process; `await_given_up` waits for the end of this.

    Raises `GivenUpError` if that has begun.
    """
    works = _works()
    _making.update(works)  # before the look: one of the two sees the other
    try:
        check_wanted()
        yield
    finally:
        _making.difference_update(works)


def give_up(done: Future[T], undo: Callable[[T], object] | None) -> None:
    """Have what nobody waits for any more undone once it is there."""
    _given_up.add(done)
    done.add_done_callback(partial(_undone, undo))


def _undone(undo: Callable[[T], object] | None, done: Future[T]) -> None:
    try:
        if undo is not None and done.exception() is None:
            undo(done.result())
    finally:
        _given_up.discard(done)
        _unwanted.discard(done)


def await_given_up(longest_s: float) -> None:
    """Have work that is given up make nothing more; wait for what it is just making.

    What it waits for itself, as for a store that does not answer, is nobody's concern.
    """
    _unwanted.update(_given_up.copy())
    deadline = Deadline.after(longest_s)
    while not _unwanted.isdisjoint(_making.copy()) and deadline.remaining():
        time.sleep(_POLL_S)
