"""The Lua scripts as values, and the commands that call them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

_PRELUDES = {
    "_links.lua": (
        "set_if_absent",
        "relink",
        "set",
        "try_set",
        "remove",
        "remove_if",
        "refresh",
        "restore",
        "take_over",
    ),
    "_removal.lua": ("remove", "remove_if"),
    "_pods.lua": ("claim", "renew", "end_life", "set_state", "restore_pod"),
}


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script with its prelude. Its contract (KEYS, ARGV, returns) heads its file."""

    name: str
    source: str
    sha: str


@cache
def script(name: str) -> Script:
    """Load a script by the name of its file."""
    folder = resources.files("ray_route.store") / "lua"
    files = [prelude for prelude, users in _PRELUDES.items() if name in users]
    source = "\n".join((folder / file).read_text() for file in [*files, f"{name}.lua"])
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


class Call(NamedTuple):
    """One command to Redis, built but not sent. `key` decides the node in a Cluster."""

    key: str
    words: tuple[Any, ...]
    script: Script | None = None

    def with_source(self) -> tuple[Any, ...]:
        """Return the words that work where the script isn't cached; Redis caches it then."""
        assert self.script is not None
        return ("EVAL", self.script.source, *self.words[2:])


def command(name: str, key: str, *args: Any) -> Call:
    """Build a plain command on one key."""
    return Call(key, (name, key, *args))


def script_call(name: str, keys: list[str], args: list[Any]) -> Call:
    """Build a call of a script; all keys must be of one hash tag."""
    loaded = script(name)
    return Call(keys[0], ("EVALSHA", loaded.sha, len(keys), *keys, *args), loaded)
