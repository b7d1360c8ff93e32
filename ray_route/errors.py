"""Every error that ray_route raises, grouped by what the caller does next.

    RouteError
    ├── InvalidInputError      (also ValueError)    mend the argument; nothing was changed
    │   └── UnknownMethodError (also AttributeError) call one of those that it names
    ├── ConfigError                                 mend the options or the URL
    ├── UnsafeStoreError                            mend the server's settings
    ├── DamagedKeyError                             mend that key: `ray-route doctor` says how
    ├── NoAvailablePodError                         add pods, or try again when one is ready
    ├── PodUnavailableError                         try again if the call may run twice
    │   ├── PodStartError                           mend what kept the pod from starting
    │   ├── PodRestartingError                      try again, it may come back
    │   └── StateNotMovedError                      let the state be plain data, or drop it
    ├── UpgradeError                                mend the class; `.undone` says what serves now
    ├── CallCancelledError                          nothing: it was asked for
    ├── UnpicklableError       (also TypeError)     let the method return or raise plain data
    ├── FencedError                                 ask for the link again, then call its pod
    ├── StoreUnavailableError                       try again when Redis answers
    │   ├── LostWritesError                         try again, they are being written back
    │   └── PartialBatchError                       use `.partial`, ask again for the rest
    ├── RouterUnavailableError                      try again when the router is back
    ├── RayUnavailableError                         start that Ray, or name another
    ├── ClosedError                                 connect again
    │   └── RayGoneError                            join a Ray again, then connect again
    ├── NestedCallError                             your method ran: see what it met, `.error`
    └── RouteTimeoutError      (also TimeoutError)  try again, or allow more time

Ids are attributes, and the class writes the message. All survive pickling, so what a Ray actor
raises arrives whole. No message holds a password: addresses are written without user names. Of a
call, `may_have_run` is False only where it provably never started.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray_route.error_root import RouteError as RouteError  # noqa: PLC0414 - it is one of them
from ray_route.error_root import shown

_REPEAT = "repeat it only if that is harmless (idempotent=True)"


class InvalidInputError(RouteError, ValueError):
    """An argument can never work. Nothing was changed."""

    def __init__(self, *, argument: str, value: object, reason: str, **ids: Any) -> None:
        super().__init__(argument=argument, value=shown(value), reason=reason, **ids)

    argument: str
    value: str
    reason: str

    def _what(self) -> str:
        return f"{self.argument}={self.value} {self.reason}"


class UnknownMethodError(InvalidInputError, AttributeError):
    """The pods' class has no method of that name; the message names those there are."""


class ConfigError(RouteError):
    """An option or a connection URL is wrong, or does not fit what the namespace runs with."""

    def __init__(self, *, option: str, reason: str, **ids: Any) -> None:
        super().__init__(option=option, reason=reason, **ids)

    option: str
    reason: str

    def _what(self) -> str:
        return f"{self.option}: {self.reason}"


class UnsafeStoreError(RouteError):
    """The Redis server would lose or refuse links; `fix` says which setting to change."""

    def __init__(self, *, address: str, reason: str, fix: str, **ids: Any) -> None:
        super().__init__(address=address, reason=reason, fix=fix, **ids)

    address: str
    reason: str
    fix: str

    def _what(self) -> str:
        return f"the store at {self.address} is not safe for links: {self.reason}; {self.fix}"


class DamagedKeyError(RouteError):
    """A key in Redis holds what nobody of ours has written; says nothing about any other.

    Nothing was read from it, nothing was written to it, and it is not a missing one.
    """

    def __init__(self, *, key: str, reason: str, ends: bool = False, **ids: Any) -> None:
        super().__init__(key=key, reason=reason, ends=ends, **ids)

    key: str
    reason: str
    ends: bool
    """It has a time to live: it goes by itself, and is missing then."""
    hint = "`ray-route doctor` says how to mend it"

    def _what(self) -> str:
        return f"the key {shown(self.key)} is damaged: it holds {self.reason}"


class NoAvailablePodError(RouteError):
    """No pod of the service is ready and alive, so a new uid has nowhere to go.

    `known` maps every pod that the service ever had to its state.
    """

    def __init__(self, *, known: dict[int, str], **ids: Any) -> None:
        super().__init__(known=known, **ids)

    known: dict[int, str]
    hint = "deploy or restart pods, then try again"

    def _what(self) -> str:
        listed = ", ".join(f"{pod}: {state}" for pod, state in sorted(self.known.items()))
        return f"no pod is ready for new uids [{listed or 'the service has no pods'}]"


class PodUnavailableError(RouteError):
    """The uid's pod can't be reached or may not take it."""

    def __init__(self, *, reason: str, may_have_run: bool, **ids: Any) -> None:
        super().__init__(reason=reason, may_have_run=may_have_run, **ids)

    reason: str
    may_have_run: bool

    @property
    def hint(self) -> str:  # type: ignore[override]
        """What to do next."""
        if self.may_have_run:
            return f"the call may have run: {_REPEAT}"
        return "the call did not run: try again"

    def _what(self) -> str:
        return f"the pod is not available: {self.reason}"


class PodStartError(PodUnavailableError):
    """A pod's code failed before it could serve: `reason` says what it raised."""

    hint = "mend the class or its arguments, then deploy it again"


class PodRestartingError(PodUnavailableError):
    """The uid's pod has ended and has `restart_grace_s` to come back. Clients wait for it."""


class StateNotMovedError(PodUnavailableError):
    """A uid's state could not be brought to pod `target`; the uid stays with its pod, as it was.

    `is_final` if any other pod would fail in the same way: the state can't be pickled, or read.
    """

    target: int | None = None
    is_final: bool = False
    hint = "let the state be plain data, or deploy with on_unpicklable='drop'"


class UpgradeError(RouteError):
    """An upgrade was stopped. What stopped it is the cause.

    `undone` if the service is as it was before. Otherwise the pods of `left` have users whom those
    of before can't take; all serve, and the controller goes on to bring them back.
    """

    def __init__(self, *, reason: str, undone: bool, left: Sequence[int] = (), **ids: Any) -> None:
        super().__init__(reason=reason, undone=undone, left=tuple(left), **ids)

    reason: str
    undone: bool
    left: tuple[int, ...]

    @property
    def hint(self) -> str:  # type: ignore[override]
        """What to do next."""
        if self.undone:
            return "the service is as it was: mend what stopped it, then upgrade again"
        return f"pods {list(self.left)} serve users whom the old class can't take: upgrade again"

    def _what(self) -> str:
        return f"the upgrade was stopped: {self.reason}"


class FencedError(RouteError):
    """A pod refused a call, because it does not own the uid under that epoch (any more).

    `may_have_run` is True where ownership ended while the call ran: its result was dropped.
    """

    def __init__(self, *, reason: str, may_have_run: bool, **ids: Any) -> None:
        super().__init__(reason=reason, may_have_run=may_have_run, **ids)

    reason: str
    may_have_run: bool
    epoch: int | None = None
    hint = "ask for the link again and call the pod that it names"

    def _what(self) -> str:
        ran = "may have run" if self.may_have_run else "did not run"
        return f"fenced, the call {ran}: {self.reason}"


class CallCancelledError(RouteError):
    """A call was cancelled by its caller."""

    def __init__(self, *, method: str, may_have_run: bool, **ids: Any) -> None:
        super().__init__(method=method, may_have_run=may_have_run, **ids)

    method: str
    may_have_run: bool

    def _what(self) -> str:
        ran = "may have run" if self.may_have_run else "did not run"
        return f"the call of {self.method} was cancelled, and {ran}"


class UnpicklableError(RouteError, TypeError):
    """A call has run, and what it returned or raised can't be pickled, so it can't be had.

    `method` is the user's, `what` what it made. The cause is an exception's own traceback.
    """

    def __init__(self, *, method: str, what: str, reason: str, **ids: Any) -> None:
        super().__init__(method=method, what=what, reason=reason, **ids)

    method: str
    what: str
    reason: str
    hint = "the call has run; let the method return or raise what can be pickled"

    def _what(self) -> str:
        return f"the {self.what} of {self.method} can't be pickled: {self.reason}"


class StoreUnavailableError(RouteError):
    """Redis does not answer, or can't take writes now. Says nothing about any link."""

    def __init__(self, *, address: str, reason: str, **ids: Any) -> None:
        super().__init__(address=address, reason=reason, **ids)

    address: str
    reason: str
    hint = "no link was read as missing; try again when the store answers"

    def _what(self) -> str:
        return f"the store at {self.address} is unavailable: {self.reason}"


class LostWritesError(StoreUnavailableError):
    """Redis has lost links of some shards; what is left there is not the truth.

    It was restarted without its data, or its clock stepped forward and ended them. Router and pods
    write back what they hold; meanwhile nothing there is read as missing.
    """

    def __init__(self, *, address: str, shards: list[int], reason: str, **ids: Any) -> None:
        RouteError.__init__(self, address=address, shards=shards, reason=reason, **ids)

    shards: list[int]
    hint = "it is being recovered; try again"

    def _what(self) -> str:
        return f"the store at {self.address} has lost links of shards {self.shards}: {self.reason}"


class PartialBatchError(StoreUnavailableError):
    """Some shards of a batch failed: `shards` says which and why.

    `partial` is the answer of the others, `unanswered` the uids that are in no list of it. Of a
    shard with `damaged` links only these are unanswered: `ray-route doctor` says how to mend them.
    """

    def __init__(
        self, *, address: str, reason: str, shards: dict[int, str], partial: Any, **ids: Any
    ) -> None:
        super().__init__(address=address, reason=reason, shards=shards, partial=partial, **ids)

    shards: dict[int, str]
    partial: Any
    unanswered: list[str] | None = None
    damaged: Sequence[str] = ()
    hint = "the answer for the other shards is in .partial; ask again for .unanswered"

    def _what(self) -> str:
        return f"{len(self.shards)} shards failed at {self.address}: {self.reason}"


class RouterUnavailableError(RouteError):
    """The router does not answer, or (not `passes`) fails; near-cache hits and batches work."""

    def __init__(self, *, reason: str, passes: bool = True, **ids: Any) -> None:
        failed = {} if passes else {"passes": False, "hint": "its log has the traceback"}
        super().__init__(reason=reason, **failed, **ids)

    reason: str
    passes = True
    hint = "Ray restarts a router by itself; try again"

    def _what(self) -> str:
        return f"the router is unavailable: {self.reason}"


class RayUnavailableError(RouteError):
    """The Ray at `address` can't be joined; without one, there is no Ray, and none is started."""

    def __init__(self, *, address: str | None, reason: str, **ids: Any) -> None:
        super().__init__(address=address, reason=reason, **ids)

    address: str | None
    reason: str

    def _what(self) -> str:
        if self.address is None:
            return f"there is no Ray to join: {self.reason}"
        return f"no Ray at {self.address} could be joined: {self.reason}"


class ClosedError(RouteError):
    """A client or a deployment was used after its end."""

    def __init__(self, *, what: str, **ids: Any) -> None:
        super().__init__(what=what, **ids)

    what: str
    hint = "connect again"

    def _what(self) -> str:
        return f"{self.what} is closed"


class RayGoneError(ClosedError):
    """The process has left the Ray in which a client, a deployment or an agent was opened.

    What `ray.shutdown()` leaves behind reaches nobody, also after another `ray.init()`. Pods of a
    Ray that goes on elsewhere go on with it. `may_have_run` is True for a call that was under way.
    A forked process is in no Ray: have such processes started by `spawn`, or by Ray.
    """

    may_have_run: bool = False
    hint = "join a Ray again, by ray.init() or connect(), and open it anew"

    def _what(self) -> str:
        ran = ", and the call may have run" if self.may_have_run else ""
        return f"this process has left the Ray (ray.shutdown, or a fork) of {self.what}{ran}"


class NestedCallError(RouteError):
    """The method that you called has run and has raised an error of ray_route: `error`.

    It met that error in a call of its own, to the pod that the error names by its own ids. So what
    it says of a call that did not run, it says of that one: yours has run, at least in part, and
    `may_have_run` is True. The ids here are those of your call.
    """

    def __init__(self, *, method: str, error: RouteError, **ids: Any) -> None:
        super().__init__(method=method, error=error, **ids)

    method: str
    error: RouteError
    may_have_run = True
    hint = "the call has run: repeat it only if that is harmless"

    def _what(self) -> str:
        return f"{self.method} raised {type(self.error).__name__}: {self.error}"


class RouteTimeoutError(RouteError, TimeoutError):
    """A deadline passed. `waiting_for` says what had not come.

    That of a batch carries what had: `partial`, and `unanswered`, the uids in no list of it.
    That of a call says by `may_have_run` whether it may have begun: then it may run still.
    """

    def __init__(self, *, waiting_for: str, timeout_s: float, **ids: Any) -> None:
        super().__init__(waiting_for=waiting_for, timeout_s=timeout_s, **ids)

    waiting_for: str
    timeout_s: float
    partial: Any = None
    unanswered: list[str] | None = None
    may_have_run: bool | None = None

    @property
    def hint(self) -> str:  # type: ignore[override]
        """What to do next."""
        if self.may_have_run is None:
            return ""
        if self.may_have_run:
            return f"the call may have run, or may run still: {_REPEAT}"
        return "the call did not run: try again, or allow more time"

    def _what(self) -> str:
        return f"timed out after {self.timeout_s:g} s, waiting for {self.waiting_for}"
