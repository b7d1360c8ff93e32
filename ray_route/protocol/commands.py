"""What a router tells the agent of a living pod to do before it touches that pod's links.

An agent may live in any process that has joined Ray, which nothing can call. So it fetches its
commands (`Router.fetch_commands`) and answers each (`Router.take_answer`, `take_outcomes`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import NamedTuple

from ray_route.model import RoutingState

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
    """Give up uids up to an epoch, each when its calls have ended, and run `on_release`.

    Answered uid by uid, by an `Outcome`. A uid that is still busy after `patience_s` seconds is
    kept as it was; one that only waits for its hook's turn is not busy. With `closes`, its calls
    are refused meanwhile. `replaced` names the epochs that their links replaced, as far as the
    router has read them.
    """

    uids: dict[str, int]
    patience_s: float
    closes: bool
    replaced: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cancel:
    """Take a release back, by its number, where no hook has begun: those uids are kept."""

    release: int


class Outcome(NamedTuple):
    """What became of one uid of a release: it was given up, or it is kept as it was.

    `has_state`: its state of that epoch is kept for the next owner to fetch (see `Take`).
    """

    release: int
    uid: str
    epoch: int
    given: bool
    has_state: bool = False


@dataclass(frozen=True, slots=True)
class Take:
    """Fetch the states of uids that the pod behind an actor's name has given up, by epoch.

    Answered uid by uid, by a `Taken`. Who has not taken one within `within_s` seconds need not go
    on: the uid is given back then.
    """

    uids: dict[str, int]
    actor: str
    within_s: float


class Taken(NamedTuple):
    """What became of one uid of a `Take`: its state is here, or there is a problem.

    `is_final`: another pod, or another attempt, would meet the same.
    """

    release: int
    uid: str
    problem: str = ""
    is_final: bool = False


class Fate(IntEnum):
    """What is to become of the link of a uid that its pod has given up."""

    STAYS = 0
    """It is given back to the pod, if nobody takes it."""
    GOES = 1
    """Its removal is due."""
    UNUSED = 2
    """Nobody used it: it goes, unless it is persistent by now; then it is given back."""
    MAY_GO = 3
    """Its removal was due, but may have been taken back: it goes if Redis has it scheduled yet, and
    is given back else."""


Given = tuple[int, Fate]
"""An epoch under which a uid was given up, and what is to become of its link."""

Settlement = tuple[int, int]
"""An epoch under which a uid was given up, and the one under which it is this pod's now, or 0."""


@dataclass(frozen=True, slots=True)
class Settled:
    """Take in whose uids are now that were given up, or whose states have arrived.

    One that is this pod's under another epoch is acquired, with the state; any other is dropped.
    Answer: nothing.
    """

    uids: dict[str, Settlement]


@dataclass(frozen=True, slots=True)
class EndAt:
    """Give up uids so many seconds from now (infinite: no more), since their links are to go then.

    Infinite: their links are about to be set anew, where they are; `temporary`: as temporary ones.
    Who asks may fail, or die, before he tells more (`Kinds`): what was to go is settled when it is
    due. `replaced` is that of `Release`. Answer: the uids that are being given up already.
    """

    uids: dict[str, int]
    after_s: float
    temporary: bool = False
    replaced: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kinds:
    """Take in of uids, and their epochs, whether their links are persistent from now on.

    Their links have been set anew: none is to go any more. They are this pod's as before: one that
    it takes for temporary it would give up when nobody uses it, and its link would go. Answer:
    nothing.
    """

    uids: dict[str, tuple[int, bool]]


class Shown(NamedTuple):
    """What a pod has: the epochs of all uids held, and how many calls run.

    `undecided` counts the states here of uids that are nobody's: their next owner has not fetched
    them yet, or they have come and their link is not known to be this pod's. They are lost with it.
    """

    held: dict[str, int]
    running: int
    undecided: int = 0


class Weighed(NamedTuple):
    """What the uids of a pod weigh: the epochs of all, and of some the load that its code reports.

    `shares` tells which share of its time a uid has spent in calls lately, if any; `busy` are those
    with a call just now, `persistent` those whose links are.
    """

    epochs: dict[str, int]
    loads: dict[str, float]
    shares: dict[str, float]
    busy: list[str]
    persistent: list[str]


@dataclass(frozen=True, slots=True)
class Weigh:
    """Answer: what the pod's uids weigh, as `Weighed`; or the `hottest` so many, as `HotUid`s."""

    hottest: int = 0


class Refreshed(NamedTuple):
    """What became of the links that an agent has reported as in use (`Router.report_use`).

    `ended` are those that are others by now, with the epochs reported. `ending` are those whose
    lives were not lengthened: their removal is scheduled, and their pod may not know of that, since
    whoever took it back there could not take it back in Redis; or they are damaged, and were
    temporary. All else live on for a whole lease.
    """

    ended: dict[str, int]
    ending: set[str]


@dataclass(frozen=True, slots=True)
class Count:
    """Answer: how many uids the pod holds."""


@dataclass(frozen=True, slots=True)
class Show:
    """Answer: what the pod has, as `Shown`."""


@dataclass(frozen=True, slots=True)
class Close:
    """Admit nothing, until `Open`. Answer: as of `Show`."""


@dataclass(frozen=True, slots=True)
class Open:
    """Admit again: the drain has failed. Answer: as of `Show`."""


@dataclass(frozen=True, slots=True)
class Recall:
    """Answer: a `Memory`, with the uids held in these shards; of none: with the counters alone.

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


Command = (
    Release | Cancel | Take | Settled | EndAt | Kinds | Show | Count | Weigh | Close | Open | Recall
)

Numbered = tuple[int, Command]
"""A command, and the number under which its answer is expected."""


class Fetched(NamedTuple):
    """What an agent hears when it asks for commands.

    `router` is the number of the router that speaks: 0 while it does not serve yet, and may only
    ask what the agent remembers. `state` is the pod's; `servers` are those that the router saw last
    (see `Vouched`), empty before its first look.
    """

    router: int
    state: RoutingState
    commands: list[Numbered]
    servers: str
