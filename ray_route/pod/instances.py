"""The objects of a pod that has one for each uid."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

_FAILED = "on_release of the object of uid %r failed"


class Instances:
    """Makes an object when its uid is acquired, and drops it when that is given up or lost.

    Which of these happens when is decided by `Holdings`: each once per epoch, never beside a call
    or each other. So nothing here is locked. What goes on to the next pod is an object's state,
    never the object, which would bring its class along: an upgraded class takes over what the old
    one knew.
    """

    def __init__(self, cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.cls = cls
        self._args = args
        self._kwargs = kwargs
        self._of: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._of)

    def of(self, uid: str) -> Any:
        """Return the object of a uid that is held."""
        return self._of[uid]

    def on_acquire(self, uid: str, prepared: Any) -> None:
        """Take in the object of a uid, or make it anew if there is none.

        Raises what its `__init__` does, and then there is none.
        """
        made = self.cls(uid, *self._args, **self._kwargs) if prepared is None else prepared
        self._of[uid] = made

    def prepare(self, _: str, state: tuple[Any]) -> Any:
        """Make an object of a state, without `__init__`; raises what its `__setstate__` does."""
        cls: Any = self.cls
        made = cls.__new__(cls)
        _give_state(made, state[0])
        return made

    def on_release(self, uid: str) -> Any:
        """Drop the object of a uid, after its `on_release()` if it has one; return its state.

        A coroutine, if that is one. One that fails is logged: the state goes on all the same.
        """
        one = self._of.pop(uid)
        try:
            ended = _hook(one, "on_release")
        except Exception:
            logger.exception(_FAILED, uid)  # its state goes on all the same
            return _state_of(one)
        return _state_after(uid, one, ended) if inspect.isawaitable(ended) else _state_of(one)

    def on_lost(self, uid: str) -> Any:
        """Drop the object of a uid that is another's by now, after its `on_lost()`."""
        return _hook(self._of.pop(uid, None), "on_lost")


def _hook(one: Any, name: str) -> Any:
    hook = getattr(one, name, None)
    return None if hook is None else hook()


async def _state_after(uid: str, one: Any, ended: Any) -> Any:
    try:
        await ended
    except Exception:
        logger.exception(_FAILED, uid)  # as above
    return _state_of(one)


def _state_of(one: Any) -> tuple[Any]:
    """Return an object's state as pickling would, in a tuple: it may be None, too."""
    reduced = one.__reduce_ex__(2)
    return (reduced[2] if len(reduced) > 2 else None,)


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
