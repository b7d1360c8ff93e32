"""Fetches the router's commands to this pod, carries them out, and reports the uids in use."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

from ray_route.clock import Deadline, now
from ray_route.errors import RouteError
from ray_route.model import RoutingState
from ray_route.pod.admission import Admissions
from ray_route.protocol.commands import (
    Cap,
    Close,
    Command,
    Memory,
    Open,
    Recall,
    Release,
    Reopen,
    Show,
)
from ray_route.runtime.namespace import Namespace
from ray_route.runtime.waiting import run

logger = logging.getLogger(__name__)

_FETCH_S = 10.0
_SLACK_S = 10.0
_RETRY_S = 0.2
_RELEASERS = 16

# A temporary uid that nobody has used for this share of its TTL is given up: early enough that
# its `on_release` has run before its link could end and be another's.
_IDLE_SHARE = 2 / 3
_REVIEW_SHARE = 1 / 10

Hook = Callable[[str], Any]


class CommandLoop:
    """Serves one incarnation's commands until it ends."""

    def __init__(
        self,
        namespace: Namespace,
        service: str,
        pod: int,
        admissions: Admissions,
        on_release: Hook | None,
    ) -> None:
        self.state = RoutingState.READY
        self._namespace = namespace
        self._address = (service, pod, admissions.lease.incarnation)
        self._admissions = admissions
        self._on_release = on_release
        self._router = 0
        self._ended = threading.Event()
        self._releasers = ThreadPoolExecutor(_RELEASERS, thread_name_prefix="ray_route-release")
        for work in (self._fetch_commands, self._report_use):
            threading.Thread(target=work, name="ray_route-commands", daemon=True).start()

    def end(self) -> None:
        """Stop attending; does not wait."""
        self._ended.set()
        self._releasers.shutdown(wait=False)

    def _fetch_commands(self) -> None:
        while not self._ended.is_set():
            try:
                router, state, commands = self._ask("fetch_commands", self._address, _FETCH_S)
                self._follow(router, state)
                for number, command in commands:
                    self._dispatch(router, number, command)
            except Exception as error:  # noqa: BLE001 - without commands, nothing here can move
                # Not by way of `Namespace.ask`: the router's restart must be noticed at once, for
                # a new one knows of this agent only by this call.
                logger.debug("commands can't be fetched: %r", error)
                if not self._ended.wait(_RETRY_S):
                    self._find_router()

    def _find_router(self) -> None:
        try:
            self._namespace.find_router()
        except Exception as error:  # noqa: BLE001 - the next attempt may do better
            logger.warning("the router can't be found: %r", error)

    def _ask(self, method: str, *args: Any) -> Any:
        ref = getattr(self._namespace.router, method).remote(*args)
        return ray.get(ref, timeout=_FETCH_S + _SLACK_S)

    def _follow(self, router: int, state: RoutingState) -> None:
        """Take in which router speaks, and the state that the directory has for this pod."""
        self.state = state
        if state is RoutingState.SHUTDOWN:
            self._admissions.shut()
        if self._router and router > self._router:
            # A new router writes only once no older one can: what an older one asked for and
            # did not finish will never be finished.
            self._admissions.reopen_all()
        self._router = max(router, self._router)

    def _dispatch(self, router: int, number: int, command: Command) -> None:
        if self._ended.is_set():
            return
        if isinstance(command, Recall):
            self._answer(number, self._recall(command))
        elif router != self._router:
            return
        elif isinstance(command, Release):
            # These wait for calls and hooks; all others are done at once, and in command.
            deadline = Deadline.after(command.timeout_s)
            self._releasers.submit(self._release_and_answer, router, number, command, deadline)
        else:
            self._answer(number, self._carry_out(command))

    def _answer(self, number: int, result: Any) -> None:
        try:
            self._ask("take_answer", self._address, number, result)
        except (RouteError, ray.exceptions.RayError) as error:
            logger.warning("an answer did not reach the router: %r", error)

    def _carry_out(self, command: Command) -> Any:
        admissions = self._admissions
        if isinstance(command, Reopen):
            admissions.reopen(command.uids, command.number)
        elif isinstance(command, Cap):
            for uid, epoch in command.uids.items():
                admissions.cap(uid, epoch, now() + command.lease_s)
        elif isinstance(command, Close):
            admissions.close()
        elif isinstance(command, Open):
            admissions.open()
        if isinstance(command, (Show, Close, Open)):
            return admissions.holdings(), admissions.running
        return True

    def _recall(self, command: Recall) -> Memory:
        held = self._admissions.kinds() if self._admissions.lease.is_alive() else {}
        shard_of = self._namespace.keys.shard
        lost = {uid: kind for uid, kind in held.items() if shard_of(uid) in command.shards}
        return Memory(self._namespace.all_seen(), lost)

    def _release_and_answer(
        self, router: int, number: int, command: Release, deadline: Deadline
    ) -> None:
        given_up: list[str] = []
        for uid, epoch in command.uids.items():
            stale = router != self._router or self._ended.is_set()
            if stale or (given_up and deadline.remaining() == 0):
                break
            if self._release(uid, epoch, deadline, command.number):
                given_up.append(uid)
        self._answer(number, given_up)

    def _release(self, uid: str, epoch: int, deadline: Deadline, number: int = 0) -> bool:
        """Give one uid up; the user's hook runs after its last call and before anyone else's."""
        if not self._admissions.release(uid, epoch, deadline, number):
            return False
        if self._on_release is not None and self._admissions.holds(uid, epoch):
            try:
                self._on_release(uid)
            except Exception:
                logger.exception("on_release(%r) failed; the uid is given up all the same", uid)
        self._admissions.forget(uid, epoch)
        return True

    def _report_use(self) -> None:
        ttl_s = self._namespace.config.ttl_s
        reported_at = now()
        while not self._ended.wait(ttl_s * _REVIEW_SHARE):
            began = now()
            used, idle = self._admissions.review(reported_at, ttl_s * _IDLE_SHARE)
            try:
                self._give_up_idle(idle)
                self._refresh_used(used, ttl_s)
                reported_at = began
            except Exception as error:  # noqa: BLE001 - the next report makes up for it
                logger.warning("uids in use could not be reported: %r", error)

    def _give_up_idle(self, idle: dict[str, int]) -> None:
        at_once = Deadline.after(0)
        gone = {uid: epoch for uid, epoch in idle.items() if self._release(uid, epoch, at_once)}
        if gone:
            asked = self._namespace.ask("take_back", self._address, gone)
            run(asked, Deadline.after(_FETCH_S))

    def _refresh_used(self, used: dict[str, int], ttl_s: float) -> None:
        """Keep links in use alive, and let go of uids whose link is another by now."""
        if not used:
            return
        asked = self._namespace.ask("report_use", self._address[0], used)
        ended: dict[str, int] = run(asked, Deadline.after(max(ttl_s * _REVIEW_SHARE, 1.0)))
        for uid, epoch in ended.items():
            self._admissions.cap(uid, epoch, now())
            self._release(uid, epoch, Deadline.after(0))
