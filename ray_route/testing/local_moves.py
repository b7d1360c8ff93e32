"""Moves of a service without Ray, as the router makes them."""

from __future__ import annotations

import math

from ray_route.clock import Deadline
from ray_route.errors import PodUnavailableError, StateNotMovedError
from ray_route.model import Link
from ray_route.protocol.commands import EndAt, Kinds, Outcome, Release, Settled, Take, Taken
from ray_route.testing.local_directory import CONFIG, LocalDirectory
from ray_route.testing.move_turns import MoveTurns

# Of the time that a mover gives, for the calls of the uid to end.
_FOR_CALLS = 0.8


class LocalMoves:
    """Moves uids, and removes them; of one uid, one at a time. Thread-safe.

    The owner gives the uid up, the target fetches its state, and only then the link goes.
    """

    def __init__(self, directory: LocalDirectory) -> None:
        self._directory = directory
        self._places = directory.places
        self._ids = directory.ids
        self._turns = MoveTurns()

    def move(
        self, uid: str, pod: int | None, deadline: Deadline, *, persistent: bool | None = None
    ) -> Link:
        """Move a uid to a pod, or to any other one. See `RouteClient.move`."""
        with self._turns.turn(uid, deadline):
            link = self._directory.link_of(uid)
            target = self._directory.another(link.pod) if pod is None else self._known(pod)
            with self._directory.in_move(uid):
                if target == link.pod:
                    return self._kept(uid, link, persistent, deadline)
                return self._moved(uid, link, target, deadline, persistent)

    def _known(self, pod: int) -> int:
        if pod not in self._places:
            raise self._unavailable(f"pod {pod} is none of {sorted(self._places)}", pod)
        return pod

    def _kept(self, uid: str, link: Link, kind: bool | None, deadline: Deadline) -> Link:  # noqa: FBT001
        """Set a link anew, where it is; its pod is asked before, and told afterwards."""
        tell, what = self._places[link.pod].mailbox.ask, f"uid {uid!r} to be kept"
        if tell(EndAt({uid: link.epoch}, math.inf), deadline, what):
            raise self._unavailable("it is giving the uid up just now: try again", link.pod, uid)
        if kind is not None:
            link = self._directory.set_kind(uid, link, persistent=kind)
        tell(Kinds({uid: (link.epoch, link.persistent)}), deadline, what)
        return self._directory.link_of(uid)

    def _moved(
        self,
        uid: str,
        link: Link,
        target: int,
        deadline: Deadline,
        kind: bool | None,  # noqa: FBT001
    ) -> Link:
        epoch, owner = link.epoch, self._places[link.pod].mailbox
        outcome = self._release(uid, link, deadline)
        if outcome.has_state:
            self._carry(uid, link, target, deadline)
        new = self._directory.link_to(uid, target, persistent=kind)
        owner.ask(Settled({uid: (epoch, 0)}), deadline, "its owner to let go")
        settled = Settled({uid: (epoch, new.epoch)})
        self._places[target].mailbox.ask(settled, deadline, "its new pod to take it")
        return new

    def _release(self, uid: str, link: Link, deadline: Deadline) -> Outcome:
        patience_s = deadline.remaining() * _FOR_CALLS
        command = Release({uid: link.epoch}, patience_s, True, {uid: link.replaced})
        mailbox = self._places[link.pod].mailbox
        answered = Deadline.after(CONFIG.ttl_s)  # by then a hook that has begun has ended
        outcome: Outcome = mailbox.ask(command, answered, f"uid {uid!r} to be released")
        if not outcome.given:
            raise self._unavailable("its calls did not end in time, and it stays", link.pod, uid)
        return outcome

    def _carry(self, uid: str, link: Link, target: int, deadline: Deadline) -> None:
        """Have the target fetch a uid's state; where it can't, give the uid back, and say why."""
        command = Take({uid: link.epoch}, str(link.pod), deadline.remaining())
        try:
            mailbox = self._places[target].mailbox
            taken: Taken = mailbox.ask(command, deadline, "its state to be taken")
        except BaseException:
            self._give_back(uid, link)
            raise
        if taken.problem:
            self._give_back(uid, link)
            facts = {"pod": link.pod, "target": target, "is_final": taken.is_final, "uid": uid}
            raise StateNotMovedError(reason=taken.problem, may_have_run=False, **self._ids, **facts)

    def _give_back(self, uid: str, link: Link) -> None:
        new = self._directory.link_to(uid, link.pod)
        settled, soon = Settled({uid: (link.epoch, new.epoch)}), Deadline.after(CONFIG.ttl_s)
        self._places[link.pod].mailbox.ask(settled, soon, "its pod to have it back")

    def remove(self, uid: str, deadline: Deadline, pod: int | None = None) -> bool:
        """Remove a uid's link, once its pod has released it; say if there was one, of that pod."""
        with self._turns.turn(uid, deadline):
            link = self._directory.peek(uid)
            if link is None or pod not in (None, link.pod):
                return False
            owner = self._places[link.pod].mailbox
            if self._directory.is_alive(link):
                self._release(uid, link, deadline)
            self._directory.remove(uid, link)
            owner.ask(Settled({uid: (link.epoch, 0)}), deadline, "its owner to let go")
            return True

    def _unavailable(self, reason: str, pod: int, uid: str | None = None) -> PodUnavailableError:
        ids = self._ids if uid is None else {**self._ids, "uid": uid}
        return PodUnavailableError(reason=reason, may_have_run=False, pod=pod, **ids)
