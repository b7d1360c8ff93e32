"""Who has which uid in a service without Ray: in place of the router and of Redis."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

from ray_route.clock import Deadline
from ray_route.config import RouteConfig
from ray_route.errors import (
    InvalidInputError,
    NoAvailablePodError,
    PodUnavailableError,
    StateNotMovedError,
)
from ray_route.model import Link, RoutingState
from ray_route.protocol.commands import (
    Address,
    EndAt,
    Fate,
    Fetched,
    Given,
    Kinds,
    Outcome,
    Refreshed,
    Release,
    Settled,
    Settlement,
    Take,
    Taken,
)
from ray_route.runtime.link_reads import Part, Reading, Readings
from ray_route.runtime.waiting import Operation
from ray_route.store.keys import Keys
from ray_route.store.links import ShardReply
from ray_route.testing.local_mailbox import Mailbox
from ray_route.testing.move_turns import MoveTurns

# Nothing runs out by itself within any test.
_TTL_S = 1e6
_ROUTER = 1
# Of the time that a mover gives, for the calls of the uid to end.
_FOR_CALLS = 0.8

# They grow for ever: what one service has written is never newer than the next one.
_epochs = count(1)

CONFIG = RouteConfig(ttl_s=_TTL_S, shards=1)


class Place(NamedTuple):
    """One life of a pod, as the directory has it."""

    incarnation: int
    mailbox: Mailbox


class LocalDirectory:
    """Links, in memory; moves, as the router makes them. Thread-safe."""

    def __init__(self, namespace: str, service: str) -> None:
        self._ids: dict[str, Any] = {"namespace": namespace, "service": service}
        self._lock = threading.Lock()
        self._links: dict[str, Link] = {}
        self._moving: set[str] = set()
        self._turns = MoveTurns()
        self.places: dict[int, Place] = {}

    # Links.

    def link_of(self, uid: str) -> Link:
        """Return the link of a uid; place it, if it has none or its pod has ended."""
        with self._lock:
            link = self._links.get(uid)
            if link is None or not self._is_alive(link):
                link = self._write(uid, self._lightest(set()))
            return link

    def peek(self, uid: str) -> Link | None:
        """Return the link that there is."""
        return self._links.get(uid)

    def links(self) -> dict[str, Link]:
        """Return all there are."""
        with self._lock:
            return dict(self._links)

    def _is_alive(self, link: Link) -> bool:
        place = self.places.get(link.pod)
        return place is not None and place.incarnation == link.incarnation

    def _lightest(self, but: set[int]) -> int:
        loads = Counter(link.pod for link in self._links.values() if self._is_alive(link))
        pods = sorted(self.places.keys() - but) or sorted(self.places)
        if not pods:
            known: dict[int, str] = {}
            raise NoAvailablePodError(known=known, **self._ids)
        return min(pods, key=lambda pod: loads[pod])

    def _write(self, uid: str, pod: int, *, persistent: bool | None = None) -> Link:
        old = self._links.get(uid)
        kind = persistent if persistent is not None else bool(old and old.persistent)
        incarnation, replaced = self.places[pod].incarnation, old.epoch if old else 0
        link = Link(pod, incarnation, next(_epochs), kind, CONFIG.lease_s, replaced)
        self._links[uid] = link
        return link

    def take_away(self, uid: str) -> Link | None:
        """Link a uid to another pod, if there is one, without a word to its owner.

        Returns the link that this replaced, if there was one.
        """
        with self._lock:
            link = self._links.get(uid)
            if link is not None:
                self._write(uid, self._lightest({link.pod}))
            return link

    # Moves: the owner gives the uid up, the target fetches its state, and only then the link goes.

    def move(
        self, uid: str, pod: int | None, deadline: Deadline, *, persistent: bool | None = None
    ) -> Link:
        """Move a uid to a pod, or to any other one, one move of it at a time.

        See `RouteClient.move`.
        """
        with self._turns.turn(uid, deadline):
            link = self.link_of(uid)
            with self._lock:
                target = self._lightest({link.pod}) if pod is None else self._known(pod)
                self._moving.add(uid)
            try:
                if target == link.pod:
                    return self._kept(uid, link, persistent, deadline)
                return self._moved(uid, link, target, deadline, persistent)
            finally:
                self._moving.discard(uid)

    def _known(self, pod: int) -> int:
        if pod not in self.places:
            raise self._unavailable(f"pod {pod} is none of {sorted(self.places)}", pod)
        return pod

    def _kept(self, uid: str, link: Link, kind: bool | None, deadline: Deadline) -> Link:  # noqa: FBT001
        """Set a link anew, where it is; its pod is asked before, and told afterwards."""
        tell, what = self.places[link.pod].mailbox.ask, f"uid {uid!r} to be kept"
        if tell(EndAt({uid: link.epoch}, math.inf), deadline, what):
            raise self._unavailable("it is giving the uid up just now: try again", link.pod, uid)
        with self._lock:
            if kind is not None and self._links.get(uid) == link:
                link = self._links[uid] = replace(link, persistent=kind)
        tell(Kinds({uid: (link.epoch, link.persistent)}), deadline, what)
        return self.link_of(uid)

    def _moved(
        self,
        uid: str,
        link: Link,
        target: int,
        deadline: Deadline,
        kind: bool | None,  # noqa: FBT001
    ) -> Link:
        epoch, owner = link.epoch, self.places[link.pod].mailbox
        outcome = self._release(uid, link, deadline)
        if outcome.has_state:
            self._carry(uid, link, target, deadline)
        with self._lock:
            new = self._write(uid, target, persistent=kind)
        owner.ask(Settled({uid: (epoch, 0)}), deadline, "its owner to let go")
        settled = Settled({uid: (epoch, new.epoch)})
        self.places[target].mailbox.ask(settled, deadline, "its new pod to take it")
        return new

    def _release(self, uid: str, link: Link, deadline: Deadline) -> Outcome:
        patience_s = deadline.remaining() * _FOR_CALLS
        command = Release({uid: link.epoch}, patience_s, True, {uid: link.replaced})
        mailbox = self.places[link.pod].mailbox
        answered = Deadline.after(_TTL_S)  # by then a hook that has begun has ended
        outcome: Outcome = mailbox.ask(command, answered, f"uid {uid!r} to be released")
        if not outcome.given:
            raise self._unavailable("its calls did not end in time, and it stays", link.pod, uid)
        return outcome

    def _carry(self, uid: str, link: Link, target: int, deadline: Deadline) -> None:
        """Have the target fetch a uid's state; where it can't, give the uid back, and say why."""
        command = Take({uid: link.epoch}, str(link.pod), deadline.remaining())
        try:
            mailbox = self.places[target].mailbox
            taken: Taken = mailbox.ask(command, deadline, "its state to be taken")
        except BaseException:
            self._give_back(uid, link)
            raise
        if taken.problem:
            self._give_back(uid, link)
            facts = {"pod": link.pod, "target": target, "is_final": taken.is_final, "uid": uid}
            raise StateNotMovedError(reason=taken.problem, may_have_run=False, **self._ids, **facts)

    def _give_back(self, uid: str, link: Link) -> None:
        with self._lock:
            new = self._write(uid, link.pod)
        settled, soon = Settled({uid: (link.epoch, new.epoch)}), Deadline.after(_TTL_S)
        self.places[link.pod].mailbox.ask(settled, soon, "its pod to have it back")

    def remove(self, uid: str, deadline: Deadline, pod: int | None = None) -> bool:
        """Remove a uid's link, once its pod has released it; say if there was one, of that pod."""
        with self._turns.turn(uid, deadline):
            link = self.peek(uid)
            if link is None or pod not in (None, link.pod):
                return False
            owner = self.places[link.pod].mailbox
            if self._is_alive(link):
                self._release(uid, link, deadline)
            with self._lock:
                if self._links.get(uid) == link:
                    del self._links[uid]
            owner.ask(Settled({uid: (link.epoch, 0)}), deadline, "its owner to let go")
            return True

    def _unavailable(self, reason: str, pod: int, uid: str | None = None) -> PodUnavailableError:
        ids = self._ids if uid is None else {**self._ids, "uid": uid}
        return PodUnavailableError(reason=reason, may_have_run=False, pod=pod, **ids)

    # What pods ask; by the names of the router's own methods.

    def fetch_commands(self, address: Address, within_s: float, _: list[int]) -> Fetched:
        """Return what a pod is to do; no answer is ever lost here, so none comes again."""
        place = self.places.get(address[1])
        commands = place.mailbox.fetch(within_s) if place is not None else []
        return Fetched(_ROUTER, RoutingState.READY, commands, "")

    def take_outcomes(self, address: Address, outcomes: Sequence[Outcome | Taken]) -> None:
        """Take in what became of uids."""
        for outcome in outcomes:
            self.take_answer(address, outcome.release, outcome)

    def take_answer(self, address: Address, number: int, said: Any) -> None:
        """Take in what a pod says of a command."""
        place = self.places.get(address[1])
        if place is not None and place.incarnation == address[2]:
            place.mailbox.answer(number, said)

    def settle(self, _: Address, given: Mapping[str, Given]) -> dict[str, Settlement]:
        """Remove the links of uids that a pod has given up by itself."""
        with self._lock:
            return dict(self._settled(given))

    def _settled(self, given: Mapping[str, Given]) -> Iterator[tuple[str, Settlement]]:
        for uid, (epoch, fate) in given.items():
            link = self._links.get(uid)
            if link is None or link.epoch != epoch:
                yield uid, (epoch, 0)
            elif uid in self._moving or fate is Fate.STAYS:
                continue
            elif fate is Fate.MAY_GO or (fate is Fate.UNUSED and link.persistent):
                yield uid, (epoch, self._write(uid, link.pod).epoch)
            else:
                del self._links[uid]
                yield uid, (epoch, 0)

    def report_use(self, _: str, used: Mapping[str, int], **__: bool) -> Refreshed:
        """Say whose links are others by now; none has an end."""
        links = self.links()
        ended = {
            uid: epoch
            for uid, epoch in used.items()
            if uid not in links or links[uid].epoch != epoch
        }
        return Refreshed(ended, set())

    def set_link(self, _: str, uid: str, pod: int, *, timeout_s: float, persistent: bool) -> Link:
        """See `PodAgent.set_linked_pod`."""
        return self.move(uid, pod, Deadline.after(timeout_s), persistent=persistent)

    def remove_link(
        self, _: str, uid: str, pod: int | None, *, timeout_s: float, after_s: float
    ) -> bool:
        """See `PodAgent.remove_linked_pod`; at once only."""
        if after_s > 0:
            reason = "must be 0 in a local service"
            raise InvalidInputError(argument="after_s", value=after_s, reason=reason)
        return self.remove(uid, Deadline.after(timeout_s), pod)


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

    def __init__(self, name: str, directory: LocalDirectory) -> None:
        self.name = name
        self.config = CONFIG
        self.keys = Keys(name, CONFIG.shards)
        self.reads = _Reads(directory)
        self._directory = directory

    def read(self, _: int, names: Sequence[tuple[str, str]]) -> Operation[list[Link | None]]:
        """Return the links of (service, uid) names."""
        yield from ()
        return [self._directory.peek(uid) for _, uid in names]

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Operation[Any]:
        """Ask the directory."""
        yield from ()
        return self._answer(method)(*args, **kwargs)

    def ask_now(self, method: str, *args: Any, timeout_s: float) -> Any:  # noqa: ARG002
        """Do the same here."""
        return self._answer(method)(*args)

    def _answer(self, method: str) -> Callable[..., Any]:
        answer = getattr(self._directory, method, None)
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
