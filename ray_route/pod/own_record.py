"""A pod's record in Redis, as its agent writes it: claimed, renewed, given back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from itertools import chain, count
from typing import Any, NamedTuple

import ray

from ray_route.clock import Deadline, now
from ray_route.errors import RouteError, StoreUnavailableError
from ray_route.model import Life, RoutingState
from ray_route.protocol.commands import Address
from ray_route.runtime.joined_ray import joined_by_client
from ray_route.runtime.namespace import Namespace
from ray_route.runtime.process_ids import identify, identify_away
from ray_route.runtime.waiting import run
from ray_route.store.pods import Identity, PodCalls, parse_table
from ray_route.store.scripts import Call

_ASK_S = 2.0
_RESIGN_S = 5.0
_POLL_S = 0.05


class Claimed(NamedTuple):
    """A life that has begun: its record's number, and the router in force.

    `asked_at` is the moment before the claim was sent, from which its lease counts.
    """

    pod: int
    incarnation: int
    asked_at: float
    seq: int
    router: int


class ClaimRefused(NamedTuple):
    """An index that can't be claimed yet; `unsealed`: since Redis has lost the pod tables.

    `wait_s`: how long to wait before another attempt.
    """

    pod: int
    unsealed: bool
    wait_s: float


class OwnRecord:
    """What one process writes of itself as a pod of a service."""

    def __init__(self, namespace: Namespace, service: str, actor: str) -> None:
        self._namespace = namespace
        self._service = service
        self._actor = actor
        # By Ray Client this process may be on another machine than its node, which would find that
        # no process of that number is there, and call a living pod ended.
        self._process = identify_away() if joined_by_client() else identify()
        self._calls = PodCalls(namespace.keys)

    def claim(self, fixed: int | None, state: RoutingState) -> Claimed | ClaimRefused:
        """Begin a life of the fixed index, or of one that is free; or say what is in the way."""
        for index in self._free_indexes(fixed):
            asked_at = now()
            call = self._calls.claim(self._who(index), state)
            status, number, *told = self._run(call)
            if status == b"ok":
                return Claimed(index, int(number), asked_at, seq=int(told[0]), router=int(told[1]))
            if status == b"held" and fixed is None:
                continue
            return ClaimRefused(index, status == b"unsealed", wait_s=int(number) / 1000)
        raise AssertionError("there is always an index to try")

    def _free_indexes(self, fixed: int | None) -> Iterable[int]:
        """Return the indexes to try to claim: the fixed one, or all that are free, own ones first.

        Others may take one of these meanwhile: the claim itself decides.
        """
        if fixed is not None:
            return [fixed]
        table = parse_table(self._namespace.store.one(self._calls.table(self._service)))
        alive = {record.pod: record.process for record in table if record.life is Life.ALIVE}
        own = [pod for pod, process in alive.items() if process == self._process]
        return chain(own, (pod for pod in count() if pod not in alive))

    def renew(
        self, address: Address, load: float, state: RoutingState, seq: int, *, lapsed: bool
    ) -> list[Any]:
        """Renew a life; return the script's status, and what it tells."""
        _, index, incarnation = address
        who = self._who(index)
        return self._run(self._calls.renew(who, incarnation, load, state, seq, lapsed=lapsed))

    def resign(self, address: Address) -> None:
        """Give the index back."""
        _, index, incarnation = address
        self._run(self._calls.resign(self._who(index), incarnation))

    def resign_patiently(self, address: Address) -> None:
        """Give the index back; a store that is just coming back gets a few seconds."""
        deadline = Deadline.after(_RESIGN_S)
        while True:
            try:
                self.resign(address)
            except StoreUnavailableError:
                if not deadline.remaining():
                    raise
                time.sleep(_POLL_S)
            else:
                return

    def ask_router(self, method: str, *args: Any) -> None:
        """Have the router look now; if it can't, it will by itself within a heartbeat."""
        with contextlib.suppress(RouteError, ray.exceptions.RayError):
            run(self._namespace.ask(method, *args), Deadline.after(_ASK_S))

    def _who(self, index: int) -> Identity:
        return Identity(self._service, index, self._process, self._namespace.node, self._actor)

    def _run(self, call: Call) -> list[Any]:
        replies: list[Any] = self._namespace.store.one(call)
        return replies
