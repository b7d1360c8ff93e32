"""One call on its way: what is known of it, and how it is waited for."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import random
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray

from ray_route.client.refusals import judged
from ray_route.clock import Deadline, backoff_s, now
from ray_route.errors import CallCancelledError
from ray_route.model import Link
from ray_route.protocol.calls import Chain, Header, Order
from ray_route.runtime.call_context import current_chain, node_mark, time_of
from ray_route.runtime.futures import Outcome
from ray_route.runtime.waiting import late, slices

_BUSY_S = 0.01
_LONGEST_BUSY_S = 0.25

_numbers = itertools.count(1)


@dataclass(eq=False, slots=True)
class Outgoing:
    """A call from when it is made until its outcome is certain.

    It waits (`ref` is None), or was sent (`ref` is its answer, which may turn out to be a refusal,
    and then it waits again), or is over: `certain`, with `ref` as its outcome, or with an `error`
    of ours. An argument that is itself an `Outgoing` stands for its answer.
    """

    namespace: str
    service: str
    uid: str
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    idempotent: bool
    deadline: Deadline
    chain: Chain = field(default_factory=current_chain)
    """The turns within which it is made."""
    begun_at: float = field(default_factory=now)
    number: int = field(default_factory=_numbers.__next__)
    lane: Any = None
    """Its `Lane`, once it is to be sent."""
    ref: Any = None
    link: Link | None = None
    """By which it was sent, or, before that, was looked up."""
    order: Order = (0, 0)
    """Its place among those sent, as its pod was told."""
    sent_refs: tuple[Any, ...] = ()
    """The answers of other calls that went along as arguments."""
    min_epoch: int = 0
    may_have_run: bool = False
    busy: int = 0
    """So often in a row its pod has said that too many calls of its uid wait."""
    trouble: Exception | None = None
    """What came instead of an answer."""
    certain: bool = False
    error: Exception | None = None
    failure: Exception | None = None
    """What the user's code raised, as far as it has been seen."""
    cancelled: bool = False
    """It is not to be sent, or not again. Set without a lock: wherever that is, it holds."""
    taken: bool = False
    forsaken: bool = False
    """Nobody can take its outcome any more."""
    waiters: list[Future[None]] = field(default_factory=list)
    is_plain: bool = field(init=False)
    """No argument is a reference, or another call's answer."""

    def __post_init__(self) -> None:
        self.is_plain = True
        for value in self.values() if self.kwargs else self.args:  # `any` takes twice as long
            if isinstance(value, _REFERENCES):
                self.is_plain = False

    def header(self, link: Link, order: Order = (0, 0)) -> Header:
        """Return what goes along with it to the pod of a link."""
        due = (time_of(self.deadline), node_mark())
        chain = self.chain and list(self.chain)
        return [self.uid, link.epoch, link.incarnation, self.method, *order, *due, chain or 0]

    @property
    def busy_pause_s(self) -> float:
        """Return how long to wait before it is sent again to a pod that is busy, in seconds."""
        longest_s = backoff_s(self.busy - 1, _BUSY_S, _LONGEST_BUSY_S) if self.busy else 0.0
        pause_s = longest_s * random.uniform(0.5, 1.0)  # noqa: S311
        return min(pause_s, self.deadline.remaining())

    @property
    def what(self) -> str:
        """What whoever waits for it waits for."""
        return f"{self.method} on the pod of uid {self.uid!r} of {self.service!r}"

    @property
    def ids(self) -> dict[str, Any]:
        """What its errors name."""
        pod = self.link and self.link.pod
        return {**self._of, "pod": pod}

    @property
    def _of(self) -> dict[str, Any]:
        return {"namespace": self.namespace, "service": self.service, "uid": self.uid}

    def judged(self, error: Exception) -> Exception:
        """Return an error that ended its way, or a wait for it; see `refusals.judged`."""
        may_have_run = self.may_have_run or self.ref is not None
        return judged(error, self._of, may_have_run=may_have_run)

    @property
    def over(self) -> bool:
        """True once nothing will happen to it any more."""
        return self.certain or self.error is not None

    def values(self) -> Iterator[Any]:
        """Iterate over its arguments."""
        return itertools.chain(self.args, self.kwargs.values())

    def upstream(self) -> tuple[Outgoing, ...]:
        """Return the calls whose answers are its arguments."""
        if self.is_plain:
            return ()
        return tuple(value for value in self.values() if type(value) is Outgoing)

    def failed_argument(self) -> Exception | None:
        """Return what came of ours instead of the answer of a call that is an argument."""
        return next((one.error for one in self.upstream() if one.error is not None), None)

    def references(self) -> set[Any]:
        """Return the references among its arguments; those of other calls' answers are apart."""
        if self.is_plain:
            return set()
        return {value for value in self.values() if isinstance(value, ray.ObjectRef)}

    def as_sent(self) -> tuple[list[Any], dict[str, Any]]:
        """Return what goes along as arguments and keywords, `sent_refs` among them."""
        refs = iter(self.sent_refs)
        args = [next(refs) if type(value) is Outgoing else value for value in self.args]
        kwargs = {
            name: next(refs) if type(value) is Outgoing else value
            for name, value in self.kwargs.items()
        }
        return args, kwargs

    def changed(self) -> None:
        """Let all go on who wait for it to be sent, or to be over. Takes no lock."""
        while self.waiters:
            with suppress(IndexError):  # another thread was quicker
                waiter = self.waiters.pop()
                if waiter.set_running_or_notify_cancel():
                    waiter.set_result(None)


def cancelled(call: Outgoing, *, may_have_run: bool) -> CallCancelledError:
    """Make the error of a cancelled call."""
    return CallCancelledError(method=call.method, may_have_run=may_have_run, **call.ids)


_REFERENCES = (Outgoing, ray.ObjectRef)


class Change(NamedTuple):
    """Wait until a call has been sent, or is over.

    Looks for itself now and then: an interrupt may have kept a thread from telling.
    """

    call: Outgoing

    def _future(self) -> Future[None]:
        future: Outcome[None] = Outcome()
        self.call.waiters.append(future)
        if self._is_there():  # since before it could be told
            self.call.changed()
        return future

    def _is_there(self) -> bool:
        return self.call.ref is not None or self.call.over

    def wait(self, deadline: Deadline) -> None:
        """Wait in the calling thread."""
        future = self._future()
        for slice_s in slices(deadline):
            with suppress(concurrent.futures.TimeoutError):
                future.result(slice_s)
            if future.done() or self._is_there():
                return
        raise late(self.call.what, deadline)

    async def wait_async(self, deadline: Deadline) -> None:
        """Wait on the running event loop."""
        future = asyncio.wrap_future(self._future())
        for slice_s in slices(deadline):
            done, _ = await asyncio.wait({future}, timeout=slice_s)
            if done or self._is_there():
                return
        raise late(self.call.what, deadline)
