"""Fetches the router's commands to this pod, and carries them out."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

import ray

from ray_route.clock import now
from ray_route.errors import RayGoneError, RouteError
from ray_route.model import RoutingState
from ray_route.pod import closing
from ray_route.pod.arrivals import Arrivals
from ray_route.pod.holdings import Holdings
from ray_route.pod.kinds import set_kinds
from ray_route.pod.memory import memory, shown
from ray_route.pod.release import Releases
from ray_route.pod.surroundings import Surroundings
from ray_route.pod.uid_loads import UidLoads
from ray_route.protocol.commands import (
    Address,
    Cancel,
    Close,
    Command,
    Count,
    EndAt,
    Fetched,
    Kinds,
    Memory,
    Open,
    Recall,
    Release,
    Settled,
    Take,
    Weigh,
)

logger = logging.getLogger(__name__)

_FETCH_S = 10.0
_SLACK_S = 10.0
_RETRY_S = 0.2


class CommandLoop:
    """Carries out the commands to one incarnation until it ends; waits for nothing meanwhile."""

    def __init__(
        self,
        namespace: Surroundings,
        address: Address,
        held: Holdings,
        releases: Releases,
        arrivals: Arrivals,
    ) -> None:
        self.state = RoutingState.READY
        self.router = 0
        self.under = 0
        """The router in force at the last renewal that needed nobody's word."""
        self._namespace = namespace
        self._address = address
        self._held = held
        self._releases = releases
        self._arrivals = arrivals
        self._had: list[int] = []
        """The commands that came last, which the router must not send again."""
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="ray_route-commands", daemon=True).start()

    def end(self) -> None:
        """Take no more commands; does not wait."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                fetched: Fetched = self._ask("fetch_commands", self._address, _FETCH_S, self._had)
                self._namespace.hear_of_servers(fetched.servers)
            except RayGoneError as error:
                # A process that just ends says nothing; in one that goes on the lease will run out.
                self._log(logging.DEBUG, "no commands come any more", error)
                return
            except Exception as error:  # noqa: BLE001 - without commands, nothing here can move
                # Not by way of `Namespace.ask`: the router's restart must be noticed at once, for
                # a new one knows of this agent only by this call.
                self._log(logging.DEBUG, "commands can't be fetched", error)
                if not self._ended.wait(_RETRY_S):
                    self._find_router()
            else:
                self._had = [number for number, _ in fetched.commands]
                self._follow(fetched.router, fetched.state)
                for number, command in fetched.commands:
                    self._try(fetched.router, number, command)

    def _try(self, router: int, number: int, command: Command) -> None:
        try:
            self._dispatch(router, number, command)
        except Exception as error:  # noqa: BLE001 - one that fails must not stop the others
            self._log(logging.ERROR, f"{type(command).__name__} failed", error)

    def _find_router(self) -> None:
        try:
            self._namespace.find_router()
        except Exception as error:  # noqa: BLE001 - the next attempt may do better
            self._log(logging.WARNING, "the router can't be found", error)

    def _log(self, level: int, what: str, error: Exception) -> None:
        """Log what went wrong; with its traceback, if it is none of the errors of a day's work."""
        is_known = isinstance(error, (RouteError, ray.exceptions.RayError))
        service, pod, _ = self._address
        facts = {"namespace": self._namespace.name, "service": service, "pod": pod}
        logger.log(
            level if is_known else logging.ERROR,
            "pod %d of %s: %s: %r",
            *(pod, service, what, error),
            exc_info=None if is_known else error,
            extra=facts,
        )

    def _ask(self, method: str, *args: Any) -> Any:
        return self._namespace.ask_now(method, *args, timeout_s=_FETCH_S + _SLACK_S)

    def _follow(self, router: int, state: RoutingState) -> None:
        """Take in which router speaks, and the state that the directory has for this pod."""
        if self._ended.is_set():
            return
        self.state = state
        if state is RoutingState.SHUTDOWN:
            closing.shut(self._held, "the pod has been drained")
        if self.router and router > self.router:
            self._releases.follow(router)
        self.router = max(router, self.router)

    def _dispatch(self, router: int, number: int, command: Command) -> None:
        if self._ended.is_set():
            return
        if isinstance(command, Recall):
            self._answer(number, self._recall(command))
        elif router != self.router:
            return
        elif isinstance(command, Release):
            self._saw(command.uids)
            self._releases.release(
                number,
                command.uids,
                command.patience_s,
                closes=command.closes,
                router=router,
                replaced=command.replaced,
            )
        elif isinstance(command, Take):
            self._arrivals.begin(number, command, self._held.outcomes.tell)
        elif isinstance(command, Cancel):
            self._releases.cancel(command.release)
        else:
            self._answer(number, self._carry_out(command))

    def _answer(self, number: int, result: Any) -> None:
        try:
            self._ask("take_answer", self._address, number, result)
        except (RouteError, ray.exceptions.RayError) as error:
            logger.warning("an answer did not reach the router: %r", error)

    def _carry_out(self, command: Command) -> Any:
        if isinstance(command, EndAt):
            self._saw(command.uids)
            at = now() + command.after_s if command.after_s < math.inf else math.inf
            end_at = partial(self._releases.end_at, at=at, temporary=command.temporary)
            replaced = command.replaced
            return [
                uid
                for uid, epoch in command.uids.items()
                if not end_at(uid, epoch, replaced=replaced.get(uid, 0))
            ]
        if isinstance(command, Count):
            return len(self._held)
        if isinstance(command, Weigh):
            loads = UidLoads(self._held)
            return loads.hottest(command.hottest) if command.hottest else loads.weighed()
        if isinstance(command, Settled):
            self._saw({uid: max(epochs) for uid, epochs in command.uids.items()})
            self._releases.settled(command.uids)
            return None
        if isinstance(command, Kinds):
            self._saw({uid: epoch for uid, (epoch, _) in command.uids.items()})
            set_kinds(self._held, command.uids)
            return None
        if isinstance(command, Close):
            closing.close(self._held, "the pod is being drained")
        elif isinstance(command, Open):
            closing.reopen(self._held)
        return shown(self._held)

    def _saw(self, epochs: Mapping[str, int]) -> None:
        """Believe no server that lacks these epochs: one that was replaced takes no state here."""
        shard_of = self._namespace.keys.shard
        self._namespace.saw_all((shard_of(uid), epoch) for uid, epoch in epochs.items())

    def _recall(self, command: Recall) -> Memory:
        shard_of = self._namespace.keys.shard
        with self._held.lock:
            self._held.recalls.told(command.shards, shard_of, self._held.clock())
        lapsed, held, ago_s = memory(self._held)
        return Memory(
            self._namespace.all_seen(),
            {uid: kind for uid, kind in held.items() if shard_of(uid) in command.shards},
            lapsed,
            self.under,
            {uid: ago for uid, ago in ago_s.items() if shard_of(uid) in command.shards},
        )
