"""The Lua scripts as values, and the commands that call them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources
from typing import Any, NamedTuple, cast

_PRELUDES = re.compile(r"^-- Preludes?: (.+)$", re.MULTILINE)


class Script(NamedTuple):
    """A Lua script with its preludes.

    Its file begins with its contract: preludes, KEYS, ARGV, what it returns.
    """

    name: str
    source: str
    sha: str


@cache
def script(name: str) -> Script:
    """Load a script by the name of its file."""
    source = "\n".join(dict.fromkeys(_sources(f"{name}.lua")))
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


def _sources(file: str) -> Iterator[str]:
    """Yield the texts of a script's preludes, of theirs before them, and its own."""
    body = (resources.files("ray_route.store") / "lua" / file).read_text()
    named = _PRELUDES.search(body)
    for prelude in named[1].split(", ") if named else []:
        yield from _sources(prelude)
    yield body


class Call(NamedTuple):
    """One command to Redis, built but not sent. `key` decides the node in a Cluster.

    Its words are text or bytes: an interrupt while hiredis writes a number ends the process.
    """

    key: str
    words: tuple[str | bytes, ...]
    script: Script | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of a script's call."""
        return cast("tuple[str, ...]", self.words[3 : 3 + int(self.words[2])])

    def with_source(self) -> tuple[str | bytes, ...]:
        """Return the words that work where the script isn't cached; Redis caches it then."""
        assert self.script is not None
        return ("EVAL", self.script.source, *self.words[2:])


def plain_call(name: str, key: str, *args: Any) -> Call:
    """Build a call of a command on one key."""
    return Call(key, (name, key, *_words(args)))


def script_call(name: str, keys: list[str], args: list[Any]) -> Call:
    """Build a call of a script; all keys must be of one hash tag."""
    loaded = script(name)
    return Call(keys[0], ("EVALSHA", loaded.sha, str(len(keys)), *keys, *_words(args)), loaded)


def _words(args: Iterable[Any]) -> list[str | bytes]:
    return [arg if isinstance(arg, (str, bytes)) else str(arg) for arg in args]
