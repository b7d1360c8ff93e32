"""What a router tells the agent of a living pod to do before it touches that pod's links.

An agent may live in any process that has joined Ray, which nothing can call. So it fetches its
commands (`Router.fetch_commands`) and answers them one by one (`Router.take_answer`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

# A router acts on a release within ACT_WITHIN_S, or takes it back. The pod refuses the uid for
# REFUSED_FOR_S: several times as long, so that it never serves again while the router may still
# act. Later, the link in Redis says all that the refusal could. Seconds.
ACT_WITHIN_S = 60.0
REFUSED_FOR_S = 5 * ACT_WITHIN_S

Address = tuple[str, int, int]
"""service, pod, incarnation: whom a command is for."""


class Word(Enum):
    """A router's answer to a pod whose lease had lapsed (`Router.confirm_life`).

    SERVE: that life goes on. ENDED: it is over, and its memory is to be given up. AGAIN: nothing
    is certain yet; renew and ask once more.
    """

    SERVE = "serve"
    ENDED = "ended"
    AGAIN = "again"


@dataclass(frozen=True, slots=True)
class Release:
    """Give up uids up to an epoch: refuse, let calls end, run `on_release`.

    Answer: the uids that were given up in time; the others go on as before. `number` names this
    release for a later `Reopen`.
    """

    number: int
    uids: dict[str, int]
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Reopen:
    """Serve the uids of a release again, and stop it if it still runs: no link was changed."""

    number: int
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

    The one command that an agent also takes from a router that does not serve yet.
    """

    shards: frozenset[int]


@dataclass(frozen=True, slots=True)
class Memory:
    """What an agent was told: each shard's highest counter, and its uids.

    `held` maps them to their epoch and whether their link was persistent. `ago_s` names those
    whose own lease has ended, and how many seconds ago that was. `lapsed`: the pod's own lease
    has run out, and no router has vouched for it since; `under` is the router that was in force
    at its last renewal before that (see `Router.confirm_life`).
    """

    counters: list[int]
    held: dict[str, tuple[int, bool]]
    lapsed: bool = False
    under: int = 0
    ago_s: dict[str, float] = field(default_factory=dict)


Command = Release | Reopen | Cap | Show | Close | Open | Recall

Numbered = tuple[int, Command]
"""A command, and the number under which its answer is expected."""
