"""How the pods of a service are made: what outlives the process that deployed it.

The controller hands a recipe on and never unpickles the user's class or its arguments: its process
would keep modules that pods are to have anew.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ray import cloudpickle

from ray_route.clock import Deadline
from ray_route.errors import ConfigError
from ray_route.pod.arguments import GIVEN, check_size, cut, pack, unpack
from ray_route.pod.methods import is_async
from ray_route.pod.pod_actor import PodSpec

_HASH_DIGITS = 16
# Before Python 3.12.2, of two threads that parse at once one may fail: gh-106905 of CPython.
_PARSES = 10


@dataclass(frozen=True, slots=True)
class Given:
    """What is given to a class anew; None: as before."""

    args: tuple[Any, ...] | None = None
    kwargs: Mapping[str, Any] | None = None
    store: Any = None

    def over(self, init: bytes) -> tuple[tuple[Any, ...], Mapping[str, Any], Any]:
        """Return the arguments and the store, of which those that are not given are in `init`."""
        try:
            args, kwargs, store = unpack([init])
        except Exception as error:
            raise ConfigError(
                option=GIVEN,
                reason=f"those that the service has can't be read here ({error!r}): upgrade where "
                "their modules can be imported",
            ) from error
        return (
            args if self.args is None else self.args,
            kwargs if self.kwargs is None else self.kwargs,
            store if self.store is None else self.store,
        )


@dataclass(frozen=True, slots=True)
class Recipe:
    """One class and all that goes with it.

    `spec` is the pattern of every pod's description; `code` and `init` are the pickled class and
    arguments; `options` are those of the pods' actors; `facts` are what `deploy` compares.
    """

    spec: PodSpec
    code: bytes = field(repr=False)
    init: bytes = field(repr=False)
    options: Mapping[str, Any] = field(repr=False)
    facts: Mapping[str, str]

    @classmethod
    def of(cls, user_class: type, init: bytes, options: Mapping[str, Any], spec: PodSpec) -> Recipe:
        """Make the recipe of a class and its packed arguments; raise `ConfigError` if too large."""
        code = cloudpickle.dumps(user_class)
        check_size(code + init, f"cls, {GIVEN}")
        return cls(spec, code, init, options, _facts(user_class, code, init, options, spec))

    def pieces(self) -> list[bytes]:
        """Return it in pieces that Ray keeps."""
        return cut(cloudpickle.dumps(self))

    @staticmethod
    def whole(pieces: Iterable[bytes]) -> Recipe:
        """Return the recipe from its pieces."""
        recipe: Recipe = cloudpickle.loads(b"".join(pieces))
        return recipe

    def with_class(
        self, user_class: type, given: Given, deadline: Deadline
    ) -> tuple[Recipe, list[Any]]:
        """Return the recipe of the class that is to follow this one, and the actors in it.

        Arguments that are not `given` anew stay as they are, and so do all options. Raises
        `ConfigError` if they can't be read in this process, or can't outlive it;
        `InvalidInputError` if the class can't serve so.
        """
        args, kwargs, store = given.over(self.init)
        self.spec.how.check(user_class, args, kwargs, store)
        spec = replace(self.spec, on_loop=is_async(user_class))
        init, held = pack(args, kwargs, store, deadline)
        return Recipe.of(user_class, init, self.options, spec), held

    def user_class(self) -> type:
        """Unpickle the user's class: in a pod's maker alone."""
        cls: type = cloudpickle.loads(self.code)
        return cls


def differing(held: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Return the facts in which what is deployed differs from what is given, as deployed."""
    names = [*held, *(given.keys() - held.keys())]
    return {name: held.get(name, "not set") for name in names if held.get(name) != given.get(name)}


def _facts(
    user_class: type, code: bytes, init: bytes, options: Mapping[str, Any], spec: PodSpec
) -> dict[str, str]:
    return {
        "cls": f"{user_class.__module__}.{user_class.__qualname__}",
        "code": _hash(_source(user_class) or code),
        GIVEN: _hash(init),
        "ray_actor_options": _hash(repr(sorted(options.items())).encode()),  # may hold secrets
        **{each.name: repr(getattr(spec.how, each.name)) for each in fields(spec.how)},
    }


def _source(user_class: type) -> bytes | None:
    """Return the text of a class, which is the same in every process; None without one."""
    for left in reversed(range(_PARSES)):
        try:
            return inspect.getsource(user_class).encode()
        except (OSError, TypeError):
            return None
        except SystemError:
            if not left:
                raise
    raise AssertionError


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:_HASH_DIGITS]
