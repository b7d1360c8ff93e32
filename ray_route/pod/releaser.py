"""Carries releases out: runs the hooks, and tells the router of uids in use.

Lives as long as its agent, through all incarnations. One thread looks for what is to be done, and
asks nobody; another reports the uids in use. Neither waits for a hook. What became of releases is
told by `telling`.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import ray

from ray_route.clock import Deadline, now
from ray_route.errors import RouteError
from ray_route.pod import closing
from ray_route.pod.gate import Gate
from ray_route.pod.hooks import Hooks
from ray_route.pod.idle import look_for_idle
from ray_route.pod.in_use import are_to_go, in_use
from ray_route.pod.next_work import Kind, NextWork, Work
from ray_route.pod.release import Releases
from ray_route.pod.surroundings import Surroundings
from ray_route.pod.telling import Telling, pieces
from ray_route.pod.unsettled import is_finished, unfinished
from ray_route.protocol.commands import Address, Refreshed
from ray_route.runtime.metrics import POD_UNRELEASED, meter
from ray_route.runtime.threads import Threads
from ray_route.runtime.waiting import run

logger = logging.getLogger(__name__)

_LOOK_S = 0.1
_IDLE_LOOK_S = 1.0
_REVIEW_SHARE = 1 / 10
# Links of uids that are held and unused are kept alive from this share of their TTL on.
_KEEP_SHARE = 1 / 3
_AT_A_TIME = 5_000
_CONFIRMERS = 8
_ASK_S = 10.0

_HOOKS = {Kind.RELEASE: "on_release", Kind.LOSE: "on_lost"}


class Releaser:
    """Gives uids up, for one agent."""

    def __init__(
        self,
        namespace: Surroundings,
        gate: Gate,
        hooks: Hooks,
        releases: Releases,
        address: Callable[[], Address],
    ) -> None:
        self._namespace = namespace
        self._gate = gate
        self._held = gate.held
        self._hooks = hooks
        self._releases = releases
        self._work = NextWork(self._held)
        self._address = address
        self._ended = threading.Event()
        self._running = 0
        self._lock = threading.Lock()
        self._confirmers = Threads(_CONFIRMERS, "ray_route-confirm")
        self._hookers = Threads(hooks.at_once, "ray_route-hook")
        self._looked_at = now()
        self._telling = Telling(namespace, self._ask, self._held, releases, address)
        for work in (self._give_up, self._report_use):
            threading.Thread(target=work, name="ray_route-release", daemon=True).start()

    def release_all(self, deadline: Deadline) -> list[str]:
        """Release every uid as its calls end; return those that were not released in time.

        Admits nothing more when little of the time is left.
        """
        closing.leave_all(self._held)
        open_until = Deadline.after(0.8 * deadline.remaining())
        while not is_finished(self._held) and deadline.remaining():
            if not open_until.remaining():
                closing.close(self._held, "the pod is leaving")
            self._ended.wait(_LOOK_S / 5)
        left = unfinished(self._held)
        if left:
            service, pod, _ = self._address()
            logger.error(
                "pod %d of %s ends before %d uids were released, %s among them",
                *(pod, service, len(left), left[:20]),
            )
            meter(self._namespace.name).count(POD_UNRELEASED, service, str(pod), by=len(left))
        return left

    def wait_for_hooks(self, deadline: Deadline) -> None:
        """Wait until nothing is held and no hook runs, or until the deadline."""
        while not is_finished(self._held) and deadline.remaining():
            self._ended.wait(_LOOK_S / 5)

    def end(self) -> None:
        """Stop; hooks that run go on."""
        self._ended.set()
        self._telling.end()
        self._confirmers.end()
        self._hookers.end()

    # Giving up.

    def _give_up(self) -> None:
        known = 0
        while not self._ended.is_set():
            try:
                self._look()
            except Exception:  # without this thread no uid is ever given up again
                service, pod, _ = self._address()
                logger.exception("releases of pod %d of %s can't go on now", pod, service)
                self._ended.wait(_LOOK_S)
            known = self._held.work.wait(known, _LOOK_S)

    def _look(self) -> None:
        self._releases.tick()
        at = now()
        if at >= self._looked_at + _IDLE_LOOK_S:
            self._looked_at = at
            look_for_idle(self._held)
        alone = self._confirmers.begin
        if work := self._work.to_confirm():
            self._gate.confirm_all({it.uid: it.epoch for it in work}, alone)
        if work := self._work.to_acquire():
            self._gate.acquire_all({it.uid: it.epoch for it in work}, self._acquired, alone)
        self._begin_hooks()

    def _acquired(self, uid: str, error: BaseException | None) -> None:
        if isinstance(error, RouteError | ray.exceptions.RayError):  # it is tried again
            logger.debug("%r can't be acquired yet: %r", uid, error)
        elif error is not None:  # the user's own; the next caller meets it, too
            self._failed("on_acquire", uid, "its state is kept for its next call", error)

    def _failed(self, hook: str, uid: str, then: str, error: BaseException) -> None:
        service, pod, _ = self._address()
        facts = (hook, uid, pod, service, then)
        logger.error("%s(%r) of pod %d of %s failed; %s", *facts, exc_info=error)

    def _begin_hooks(self) -> None:
        if self._hooks.takes_turns:
            if self._count(1, at_most=1):
                self._begin_hook(self._in_turn)
            return
        with self._lock:
            free = self._hooks.at_once - self._running
        some = self._work.take(free)
        for number, work in enumerate(some):
            self._count(1)
            if self._hooks.on_loop:
                self._run(work, self._one_less)
                continue
            try:
                self._begin_hook(self._run, work, self._one_less)
            except RuntimeError:
                self._work.not_begun(some[number:])
                raise

    def _begin_hook(self, run: Callable[..., None], *args: Any) -> None:
        """Run a hook that counts already; one for which there is no thread does not."""
        try:
            self._hookers.begin(run, *args)
        except RuntimeError:
            self._count(-1)
            raise

    def _count(self, by: int, at_most: int | None = None) -> bool:
        with self._lock:
            if at_most is not None and self._running + by > at_most:
                return False
            self._running += by
            return True

    def _one_less(self) -> None:
        self._count(-1)
        with self._held.lock:
            self._held.work.ring()

    def _in_turn(self) -> None:
        """Run hooks one by one, each when it is its turn: none is waiting for that meanwhile."""
        try:
            more = True
            while more and not self._ended.is_set():
                with self._hooks.turn:
                    some = self._work.take(1)
                    for work in some:
                        self._run(work, lambda: None)
                more = bool(some)
        finally:
            self._count(-1)

    def _run(self, work: Work, done: Callable[[], None]) -> None:
        if self._work.may_begin(work):
            self._hooks.start(_HOOKS[work.kind], work.uid, partial(self._hook_ended, work, done))
        else:
            done()

    def _hook_ended(
        self, work: Work, done: Callable[[], None], error: BaseException | None, state: Any
    ) -> None:
        if error is not None:
            then = "the uid is given up all the same"
            self._failed(_HOOKS[work.kind], work.uid, then, error)
        self._work.ended(work.uid, work.epoch, state if self._hooks.carries else None)
        done()

    def _ask(self, method: str, *args: Any) -> Any:
        return self._namespace.ask_now(method, *args, timeout_s=_ASK_S)

    # Uids in use.

    def _report_use(self) -> None:
        ttl_s = self._namespace.config.ttl_s
        reported_at = now()
        while not self._ended.wait(ttl_s * _REVIEW_SHARE):
            began = now()
            try:
                used = in_use(self._held, reported_at, self._kept_before(ttl_s))
                going = are_to_go(self._held, used)
                staying = {uid: epoch for uid, epoch in used.items() if uid not in going}
                for ending, uids in ((False, staying), (True, going)):
                    for some in pieces(uids, _AT_A_TIME):
                        self._refresh(some, ttl_s, ending=ending)
                reported_at = began
            except (RouteError, ray.exceptions.RayError) as error:
                # The next report makes up for it.
                service, pod, _ = self._address()
                logger.warning("uids of pod %d of %s not reported: %r", pod, service, error)
            except Exception:  # without this thread links in use would end
                service, pod, _ = self._address()
                logger.exception("uids of pod %d of %s not reported", pod, service)

    def _kept_before(self, ttl_s: float) -> float:
        """Return before when the lease of an unused uid must end to be lengthened.

        Where they are given up sooner than their links end, none is.
        """
        outlives = self._hooks.idle_s is not None and self._hooks.idle_s > ttl_s / 2
        return now() + _KEEP_SHARE * ttl_s if outlives else -math.inf

    def _refresh(self, used: dict[str, int], ttl_s: float, *, ending: bool = False) -> None:
        """Keep links in use alive, and let go of uids whose link is another by now."""
        term, until = self._held.term, now() + self._namespace.config.lease_s
        asked = self._namespace.ask("report_use", self._address()[0], used, ending=ending)
        told: Refreshed = run(asked, Deadline.after(max(ttl_s * _REVIEW_SHARE, 1.0)))
        self._gate.admission.refreshed(used, told, until, term)
