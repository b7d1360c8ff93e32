"""What a router asks of the agent of a living pod before it touches that pod's links."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Release:
    """Give up uids up to an epoch: refuse, let calls end, run `on_release`.

    Answer: the uids that were given up in time; the others go on as before. `order` names this
    release for a later `Reopen`.
    """

    order: int
    uids: dict[str, int]
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Reopen:
    """Serve the uids of a release again, and stop it if it still runs: no link was changed."""

    order: int
    uids: dict[str, int]


@dataclass(frozen=True, slots=True)
class Cap:
    """Let the pod's own lease on uids end within so many seconds. Answer: True."""

    uids: dict[str, int]
    lease_s: float


@dataclass(frozen=True, slots=True)
class Show:
    """Answer: all uids held, with their epochs, and the number of calls that run."""


@dataclass(frozen=True, slots=True)
class Close:
    """Admit nothing, until `Open`. Answer: as of `Show`."""


@dataclass(frozen=True, slots=True)
class Open:
    """Admit again: the drain has failed. Answer: as of `Show`."""


@dataclass(frozen=True, slots=True)
class Recall:
    """Answer: a `Memory`, with the uids held in these shards.

    The one order that an agent also takes from a router that does not serve yet.
    """

    shards: frozenset[int]


@dataclass(frozen=True, slots=True)
class Memory:
    """What an agent was told: each shard's highest counter, and its uids.

    `held` maps them to their epoch and whether their link was persistent.
    """

    counters: list[int]
    held: dict[str, tuple[int, bool]]


Order = Release | Reopen | Cap | Show | Close | Open | Recall
