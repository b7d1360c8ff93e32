"""What one controller wants of its service: in its memory, and in Redis for its next life."""

from __future__ import annotations

import contextlib
import json
import threading
from functools import cached_property

from ray_route.controller.generations import newer
from ray_route.controller.marks import leads_to, note, noted, plan_of
from ray_route.controller.recipe import Recipe
from ray_route.errors import RouteError
from ray_route.protocol.names import controller_name
from ray_route.store.connect import Store
from ray_route.store.keys import Keys
from ray_route.store.wanted import Wanted, WantedCalls


class DeposedError(Exception):
    """Another controller decides over the service: this one is to end."""


class Wishes:
    """The wanted state of one service, as the controller of a Ray actor id wants it. Thread-safe.

    Memory is what counts while the controller lives; every write to Redis is whole, so that what is
    lost there, or whose write is in doubt, is made good by the next. Raises
    `StoreUnavailableError` where Redis does not answer, `DeposedError` once a younger controller
    has claimed the service, or the controller's name leads to another actor.
    """

    def __init__(self, recipe: Recipe, actor: str) -> None:
        spec = recipe.spec
        self.name = controller_name(spec.namespace, spec.service)
        self.actor = actor
        self._url = spec.url
        self._calls = WantedCalls(Keys(spec.namespace, 1), spec.service, actor)
        self._lock = threading.Lock()
        self.incarnation = 0
        self.wanted: Wanted | None = None
        self.is_held = False
        """True if Redis had what an earlier life wanted."""

    @cached_property
    def _store(self) -> Store:
        # Not when the controller is made: a constructor that raises ends an actor for good.
        return Store(self._url, retries=0)

    def claim(self) -> None:
        """Claim the service, once; take up what an earlier life of this actor wanted."""
        with self._lock:
            if not self.incarnation:
                self.check_name()
                incarnation, held = self._store.one(self._calls.claim(0))
                self.incarnation = int(incarnation)
                found = self._calls.held(held)
                self.wanted = self.wanted or newer(found, self._planned())
                self.is_held = found is not None

    def _planned(self) -> Wanted | None:
        plan = noted(plan_of(self.actor))
        return self._calls.held(map(str.encode, json.loads(plan))) if plan else None

    def write(self, wanted: Wanted) -> None:
        """Want this from now on; nothing has changed if that can't be written."""
        self.claim()
        with self._lock:
            self._send(wanted)
            self.wanted = wanted

    def change(self, wanted: Wanted, *, certain: bool = False) -> None:
        """Want another generation from now on.

        A `certain` change stands also if it can't be written now: then it is written later.
        """
        with contextlib.suppress(RouteError) if certain else contextlib.nullcontext():
            self.write(wanted)
        self.wanted = wanted
        # After Redis, where a deposed controller is told so; a newer one there is believed, too.
        fields = [str(value) for value in self._calls.fields(wanted)]
        note(plan_of(self.actor), json.dumps(fields).encode())

    def check(self) -> None:
        """Raise `DeposedError` unless this controller still decides; write back what was lost."""
        self.check_name()
        self.claim()
        with self._lock:
            if self.wanted is not None:
                self._send(self.wanted)

    def keep(self) -> None:
        """Do the same, by a look where nothing was lost."""
        self.check_name()
        self.claim()
        held = self._store.one(self._calls.read())
        if not self._calls.is_held(held, self.incarnation, self.wanted):
            self.check()

    def check_name(self) -> None:
        """Raise `DeposedError` if Ray has made another controller, or given this one up.

        Its process may go on all the same, on a node that was cut off.
        """
        if not leads_to(self.name, self.actor):
            raise DeposedError

    def forget(self) -> None:
        """Want nothing any more, whatever an earlier life has written."""
        self.claim()
        with self._lock:
            self._send(None)

    def _send(self, wanted: Wanted | None) -> None:
        if self._store.one(self._calls.want(self.incarnation, wanted)) == b"deposed":
            raise DeposedError
