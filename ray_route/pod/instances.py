"""The objects of a pod that has one for each uid."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn, Protocol

from ray_route.pod.endings import EXITS

logger = logging.getLogger(__name__)

_RAISED = (Exception, asyncio.CancelledError, *EXITS)
"""What the user's code may raise, of which none may cost a state."""


class StateStore(Protocol):
    """Where the states of objects are kept beyond the life of their pods; a user's own.

    Its methods run as those of the objects do: in threads, or, where these are coroutines, on the
    loop, and may be coroutines then. It is pickled to each pod.
    """

    def load(self, uid: str, epoch: int) -> Any:
        """Return the state that was saved last for a uid; None if there is none.

        From here on it must take none of a lower epoch: it comes from a pod that has lost the uid.
        """

    def save(self, uid: str, epoch: int, state: Any) -> Any:
        """Save the state of a uid, or raise if a higher epoch has been seen for it."""


class Instances:
    """Makes an object when its uid is acquired, and drops it when that is given up or lost.

    Which of these happens when is decided by `Holdings`: each once per epoch, never beside a call
    or each other. So nothing here is locked. What goes on to the next pod is an object's state,
    never the object, which would bring its class along: an upgraded class takes over what the old
    one knew.
    """

    def __init__(
        self,
        cls: type,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        store: StateStore | None = None,
    ) -> None:
        self.cls = cls
        self.store = store
        self.epoch_of: Callable[[str], int] = lambda _: 0
        """Says under which epoch a uid is held; told by the pod once it has an agent."""
        self.on_exit: Callable[[str, str, BaseException], object] = lambda *_: None
        """Hears of what the user's code raised for the process: of which uid, where, and what."""
        self._args = args
        self._kwargs = kwargs
        self._of: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._of)

    def has(self, uid: str) -> bool:
        """True while a uid has an object here."""
        return uid in self._of

    def of(self, uid: str) -> Any:
        """Return the object of a uid that is held."""
        return self._of[uid]

    def on_acquire(self, uid: str, prepared: Any) -> Any:
        """Take in the object of a uid; or make it of what the store has, or else anew.

        Raises what its `__init__` does, or the store, and then there is none. A coroutine, if the
        store's `load` is one.
        """
        if prepared is not None or self.store is None:
            self._made(uid, prepared)
            return None
        loaded = self.store.load(uid, self.epoch_of(uid))
        if inspect.isawaitable(loaded):
            return self._made_after(uid, loaded)
        return self._made_of(uid, loaded)

    async def _made_after(self, uid: str, loaded: Any) -> None:
        self._made_of(uid, await loaded)

    def _made_of(self, uid: str, loaded: Any) -> None:
        self._made(uid, None if loaded is None else self.prepare(uid, (loaded,)))

    def _made(self, uid: str, one: Any) -> None:
        made = self.cls(uid, *self._args, **self._kwargs) if one is None else one
        self._of[uid] = made

    def prepare(self, _: str, state: tuple[Any]) -> Any:
        """Make an object of a state, without `__init__`; raises what its `__setstate__` does."""
        if isinstance(state[0], _Stuck):
            return state[0].one
        cls: Any = self.cls
        made = cls.__new__(cls)
        _give_state(made, state[0])
        return made

    def save(self, uid: str) -> Any:
        """Have the store save the state of an object; a coroutine, if its `save` is one."""
        assert self.store is not None
        return self.store.save(uid, self.epoch_of(uid), _saved(self._state(uid, self._of[uid])))

    def on_release(self, uid: str) -> Any:
        """Drop the object of a uid, after its `on_release()` if it has one; return its state.

        A coroutine, if that is one, or the store's `save`. What fails is logged: the state goes on
        all the same.
        """
        one, steps = self._of[uid], [partial(_hook, self._of[uid], "on_release")]
        if self.store is not None:
            steps.append(partial(self.save, uid))
        for step in steps:
            with self._logged(uid):
                ended = step()
                if inspect.isawaitable(ended):
                    return self._released_after(uid, ended, steps[steps.index(step) + 1 :])
        return self._dropped(uid, one)

    async def _released_after(self, uid: str, ended: Any, steps: list[Any]) -> Any:
        """Go on with what is awaited, and the steps behind it, unless the hook is at its limit.

        Each in a task of its own: else nobody could tell that from a cancellation of the user's.
        """
        for awaited in self._awaited(uid, ended, steps):
            task = asyncio.ensure_future(self._seen(uid, awaited))
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:  # at its limit: nothing more is begun
                task.cancel()
                await asyncio.wait({task})
                break
        return self._dropped(uid, self._of[uid])

    def _awaited(self, uid: str, ended: Any, steps: list[Any]) -> Iterator[Any]:
        """Take a step after the other; yield what is to be awaited."""
        yield ended
        for step in steps:
            more = None
            with self._logged(uid):
                more = step()
            if inspect.isawaitable(more):
                yield more

    async def _seen(self, uid: str, awaited: Any) -> None:
        with self._logged(uid):
            await awaited

    def _dropped(self, uid: str, one: Any) -> tuple[Any]:
        state = self._state(uid, one)
        del self._of[uid]
        return state

    def _state(self, uid: str, one: Any) -> tuple[Any]:
        state = _state_of(one)
        if isinstance(state[0], _Stuck) and isinstance(state[0].error, EXITS):
            self.on_exit(uid, "__reduce__", state[0].error)
        return state

    @contextmanager
    def _logged(self, uid: str) -> Iterator[None]:
        try:
            yield
        except _RAISED as error:
            self._failed(uid, error)

    def _failed(self, uid: str, error: BaseException) -> None:
        """Log what the user's code has raised: the state goes on all the same."""
        what = "on_release of the object of uid %r failed"
        logger.error(what, uid, exc_info=error)
        if isinstance(error, EXITS):
            self.on_exit(uid, "on_release", error)

    def on_lost(self, uid: str) -> Any:
        """Drop the object of a uid that is another's by now, after its `on_lost()`."""
        return _hook(self._of.pop(uid, None), "on_lost")


def _hook(one: Any, name: str) -> Any:
    hook = getattr(one, name, None)
    return None if hook is None else hook()


class _Stuck:
    """Stands for the state of an object that can't say it: that can't leave its pod."""

    def __init__(self, one: Any, error: BaseException) -> None:
        self.one = one
        self.error = error

    def __reduce__(self) -> NoReturn:
        raise self.error


def _state_of(one: Any) -> tuple[Any]:
    """Return an object's state as pickling would, in a tuple: it may be None, too."""
    try:
        reduced = one.__reduce_ex__(2)
    except _RAISED as error:  # the user's own; told to whoever moves the uid
        return (_Stuck(one, error),)
    return (reduced[2] if len(reduced) > 2 else None,)


def _saved(state: tuple[Any]) -> Any:
    return state[0].__reduce__() if isinstance(state[0], _Stuck) else state[0]


def _give_state(one: Any, state: Any) -> None:
    """Give an object its state, as unpickling would."""
    take = getattr(one, "__setstate__", None)
    if state is None:
        return
    if take is not None:
        take(state)
        return
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    if attributes:
        one.__dict__.update(attributes)
    for name, value in (slots or {}).items():
        setattr(one, name, value)


class OneForAll:
    """Stands for a pod whose one object serves all its uids."""

    def __init__(self, pod: Any, cls: type) -> None:
        self._pod = pod
        self.cls = cls

    def of(self, uid: str) -> Any:  # noqa: ARG002 - it is the same for all
        """Return it."""
        return self._pod
