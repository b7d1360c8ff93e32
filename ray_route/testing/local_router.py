"""Whom a pod of a service without Ray asks, in place of the router, and how it is reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from ray_route.clock import Deadline
from ray_route.errors import InvalidInputError
from ray_route.model import Link, RoutingState
from ray_route.protocol.commands import (
    Address,
    Fetched,
    Given,
    Outcome,
    Refreshed,
    Settlement,
    Taken,
)
from ray_route.runtime.link_reads import Part, Reading, Readings
from ray_route.runtime.waiting import Operation
from ray_route.store.keys import Keys
from ray_route.store.links import ShardReply
from ray_route.testing.local_directory import CONFIG, LocalDirectory
from ray_route.testing.local_moves import LocalMoves

_ROUTER = 1


class LocalRouter:
    """What pods ask, by the names of the router's own methods."""

    def __init__(self, directory: LocalDirectory, moves: LocalMoves) -> None:
        self._directory = directory
        self._moves = moves

    def fetch_commands(self, address: Address, within_s: float, _: list[int]) -> Fetched:
        """Return what a pod is to do; no answer is ever lost here, so none comes again."""
        place = self._directory.places.get(address[1])
        commands = place.mailbox.fetch(within_s) if place is not None else []
        return Fetched(_ROUTER, RoutingState.READY, commands, "")

    def take_outcomes(self, address: Address, outcomes: Sequence[Outcome | Taken]) -> None:
        """Take in what became of uids."""
        for outcome in outcomes:
            self.take_answer(address, outcome.release, outcome)

    def take_answer(self, address: Address, number: int, said: Any) -> None:
        """Take in what a pod says of a command."""
        place = self._directory.places.get(address[1])
        if place is not None and place.incarnation == address[2]:
            place.mailbox.answer(number, said)

    def settle(self, _: Address, given: Mapping[str, Given]) -> dict[str, Settlement]:
        """Remove the links of uids that a pod has given up by itself."""
        return self._directory.settle(given)

    def report_use(self, _: str, used: Mapping[str, int], **__: bool) -> Refreshed:
        """Say whose links are others by now; none has an end."""
        links = self._directory.links()
        ended = {
            uid: epoch
            for uid, epoch in used.items()
            if uid not in links or links[uid].epoch != epoch
        }
        return Refreshed(ended, set())

    def set_link(self, _: str, uid: str, pod: int, *, timeout_s: float, persistent: bool) -> Link:
        """See `PodAgent.set_linked_pod`."""
        return self._moves.move(uid, pod, Deadline.after(timeout_s), persistent=persistent)

    def remove_link(
        self, _: str, uid: str, pod: int | None, *, timeout_s: float, after_s: float
    ) -> bool:
        """See `PodAgent.remove_linked_pod`; at once only."""
        if after_s > 0:
            reason = "must be 0 in a local service"
            raise InvalidInputError(argument="after_s", value=after_s, reason=reason)
        return self._moves.remove(uid, Deadline.after(timeout_s), pod)


class _Reads:
    """Reads links of the directory; see `pod.surroundings.Reads`."""

    def __init__(self, directory: LocalDirectory) -> None:
        self._directory = directory

    def ask(self, parts: Sequence[Part]) -> Future[Readings]:
        answer: Future[Readings] = Future()
        answer.set_result([self._reading(part) for part in parts])
        return answer

    def doubt(self, shard: int) -> None:
        """There is one directory."""

    def _reading(self, part: Part) -> Reading:
        links = [self._directory.peek(uid) for _, uid in part.names]
        return Reading(ShardReply("ok", 0, [*links], []), [False] * len(links))


class LocalNamespace:
    """What surrounds a local pod; see `pod.surroundings.Surroundings`."""

    def __init__(self, name: str, directory: LocalDirectory, router: LocalRouter) -> None:
        self.name = name
        self.config = CONFIG
        self.keys = Keys(name, CONFIG.shards)
        self.reads = _Reads(directory)
        self._directory = directory
        self._router = router

    def read(self, _: int, names: Sequence[tuple[str, str]]) -> Operation[list[Link | None]]:
        """Return the links of (service, uid) names."""
        yield from ()
        return [self._directory.peek(uid) for _, uid in names]

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Operation[Any]:
        """Ask the router."""
        yield from ()
        return self._answer(method)(*args, **kwargs)

    def ask_now(self, method: str, *args: Any, timeout_s: float) -> Any:  # noqa: ARG002
        """Do the same here."""
        return self._answer(method)(*args)

    def _answer(self, method: str) -> Callable[..., Any]:
        answer = getattr(self._router, method, None)
        if answer is None:
            reason = "asks for what a local service does not have; test it with pods of Ray"
            raise InvalidInputError(argument="method", value=method, reason=reason)
        return answer  # type: ignore[no-any-return]

    def find_router(self) -> None:
        """It is here."""

    def hear_of_servers(self, servers: str) -> None:
        """There are none."""

    def saw_all(self, seen: Iterable[tuple[int, int]]) -> None:
        """There is nothing to be lost."""

    def all_seen(self) -> list[int]:
        """Nothing is counted."""
        return [0]

    def close(self) -> None:
        """Nothing is open."""
