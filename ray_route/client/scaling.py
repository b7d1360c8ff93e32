"""The turn to scale a service, which the router gives to one caller at a time."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator

import ray

from ray_route.client.session import Session
from ray_route.clock import Deadline, now
from ray_route.errors import RouteError, RouteTimeoutError
from ray_route.runtime.waiting import Operation, Pause, late, run

# A process that dies in its turn holds up the next for so long.
LEASE_S = 15.0
_RENEW_S = LEASE_S / 5
_POLL_S = 0.2


class ScalingTurn:
    """A turn that is renewed in the background until it is given back."""

    def __init__(self, session: Session, service: str) -> None:
        self._session = session
        self._service = service
        self._holder = uuid.uuid4().hex
        self._ends_at = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="ray_route-scale", daemon=True)

    def begin(self, deadline: Deadline) -> None:
        """Wait for the turn; raise `RouteTimeoutError` while another's goes on."""
        run(self._await(deadline), deadline)
        self._thread.start()

    def check(self) -> None:
        """Raise `RouteTimeoutError` if another may have its turn by now: end nothing then."""
        if now() >= self._ends_at:
            what = f"the router, which has not renewed the turn to scale {self._service!r}"
            raise late(what, Deadline(self._ends_at, LEASE_S))

    def end(self) -> None:
        """Give the turn back; one that can't be given back ends by itself."""
        self._over.set()
        self._thread.join()
        release = self._session.namespace.ask("release_scaling", self._service, self._holder)
        with contextlib.suppress(RouteError, ray.exceptions.RayError):
            run(release, Deadline.after(_RENEW_S))

    def _hold(self) -> Operation[bool]:
        asked_at = now()
        held: bool = yield from self._session.namespace.ask(
            "hold_scaling", self._service, self._holder, LEASE_S
        )
        self._ends_at = asked_at + LEASE_S if held else 0.0
        return held

    def _await(self, deadline: Deadline) -> Operation[None]:
        what = f"another caller that is scaling service {self._service!r}"
        held = yield from self._hold()
        while not held:
            yield Pause(_POLL_S, what)
            try:
                held = yield from self._hold()
            except RouteTimeoutError as error:
                raise late(what, deadline) from error

    def _renew(self) -> None:
        while not self._over.wait(_RENEW_S):
            with contextlib.suppress(RouteError, ray.exceptions.RayError):
                run(self._hold(), Deadline.after(_RENEW_S))


@contextlib.contextmanager
def scaling_turn(session: Session, service: str, deadline: Deadline) -> Iterator[ScalingTurn]:
    """Hold the turn to scale a service; raise `RouteTimeoutError` if it is not had in time."""
    turn = ScalingTurn(session, service)
    turn.begin(deadline)
    try:
        yield turn
    finally:
        turn.end()
