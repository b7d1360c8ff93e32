"""What the live page shows: documents, made anew each time someone asks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from ray_route.cli.cluster import TIMEOUT_S, NamespaceView
from ray_route.cli.glance import glance
from ray_route.errors import RouteTimeoutError
from ray_route.model import check_uid

_DECISIONS = 300
_HOTTEST = 8
_NO_ROUTER = "no router runs, which is where decisions are remembered"


class Views:
    """Looks at a namespace for any number of browsers, for one at a time."""

    def __init__(self, namespace: NamespaceView) -> None:
        self._namespace = namespace
        self._looking = threading.Lock()

    def state(self, service: str | None, router: int, count: int) -> dict[str, Any]:
        """Return what `top --json` prints, and what was decided since the caller asked last.

        That is told by the router and the count that its last answer named; 0 and 0 at first.
        """
        with self._turn():
            seen = glance(self._namespace, service, _HOTTEST)
            decided = self._namespace.decided(router, count, _DECISIONS)
            services = [*seen.pods] if service is None else self._namespace.services()
        name = self._namespace.name
        return {**asdict(seen), "namespace": name, "services": services, "decided": decided}

    def explain(self, uid: str) -> dict[str, Any]:
        """Return every link of a uid, and what was decided about it, by service."""
        check_uid(uid)
        with self._turn():
            if self._namespace.router is None:
                links = self._namespace.links(uid).items()
                found = {service: {"link": link, "decisions": ()} for service, link in links}
                return {"uid": uid, "services": found, "notice": _NO_ROUTER}
            about = {name: self._explained(uid, name) for name in self._namespace.services()}
        known = {name: one for name, one in about.items() if one["link"] or one["decisions"]}
        return {"uid": uid, "services": known, "notice": ""}

    def _explained(self, uid: str, service: str) -> dict[str, Any]:
        return asdict(self._namespace.client.explain(uid, service))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Have the right to look, or raise `RouteTimeoutError`."""
        if not self._looking.acquire(timeout=TIMEOUT_S):
            raise RouteTimeoutError(waiting_for="an earlier look", timeout_s=TIMEOUT_S)
        try:
            yield
        finally:
            self._looking.release()
