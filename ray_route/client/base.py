"""What the two clients, the one that blocks and the awaited one, have in common."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NoReturn, TypeVar

from ray_route.client import operations
from ray_route.client.handles import ServiceHandle, service_handle
from ray_route.client.session import Session
from ray_route.client.sessions import close_session
from ray_route.errors import ClosedError
from ray_route.model import Link
from ray_route.notebook import facts
from ray_route.runtime.call_context import seconds

T = TypeVar("T")

DRAIN_S = 300.0

__all__ = ["DRAIN_S", "ClientBase", "seconds"]


class ClientBase:
    """What needs no waiting, and what the methods that wait are made of."""

    def __init__(self, session: Session) -> None:
        self._opened = session
        self._closing = threading.Lock()  # taken once, for ever
        self._given_back = threading.Lock()  # likewise, by the thread that does so
        # A hit is returned without any of the machinery of waiting, which takes 3 µs.
        self._hit: Callable[[str, str], Link | None] = session.near.get

    @property
    def closed(self) -> bool:
        """True once this client has been closed."""
        return self._closing.locked()

    @property
    def _session(self) -> Session:
        """The session, while it can be used; raises `ClosedError`, `RayGoneError`."""
        if self.closed:
            self._refuse()
        self._opened.namespace.check_here()
        return self._opened

    def _refuse(self, *_: object) -> NoReturn:
        raise ClosedError(what=repr(self), namespace=self.namespace)

    def _close(self) -> None:
        """Give the session back, once; may take a second. Interrupted, it may be called again."""
        self._closing.acquire(blocking=False)
        if not self._given_back.locked():
            self._hit = self._refuse
            close_session(self._opened, self._given_back)

    @property
    def namespace(self) -> str:
        """The namespace that this client is connected to."""
        return self._opened.namespace.name

    def service(self, name: str, cls: type[T] | None = None, /) -> ServiceHandle[T]:
        """Return a handle of a service: `rooms["ann"].say.remote("hello")`.

        With the pods' class given, unknown methods are errors at once, and type checkers know
        `rooms["ann"][Rooms.say]`. Asks nobody; the service need not be there yet.
        """
        return service_handle(self._session, name, cls)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.namespace!r} at {self._opened.namespace.url.address})"

    def _repr_html_(self) -> str:
        about = {"namespace": self.namespace, "store": self._opened.namespace.url.address}
        return facts(type(self).__name__, {**about, "closed": self.closed})

    def get_linked_in_cache(self, uid: str, service: str) -> Link | None:
        """Return the near cache's link; no I/O, never a link whose lease has run out."""
        return operations.cached(self._session, uid, service)
