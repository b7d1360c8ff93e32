"""The way into a namespace: its store, its layout, its router.

What clients and agents both need before anything else.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import ray

from ray_route.clock import Deadline, now
from ray_route.config import RouteConfig
from ray_route.errors import RouterUnavailableError
from ray_route.hosting import embedded_url
from ray_route.model import Link, check_name
from ray_route.router.actor import Welcome, router_of
from ray_route.steps import Blocking, Pause, Remote, Steps, run
from ray_route.store.connect import Store
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls
from ray_route.store.namespaces import check_options, open_namespace
from ray_route.store.url import StoreUrl, parse_url

URL_VARIABLE = "RAY_ROUTE_REDIS_URL"
_BACKOFF_S = 0.05
_MAX_BACKOFF_S = 1.0


def resolve_url(redis_url: str | StoreUrl | None, deadline: Deadline) -> StoreUrl:
    """Return the store's URL, starting Ray if this process has none.

    Without a URL: `RAY_ROUTE_REDIS_URL`, else the Ray session's embedded server.
    """
    url = redis_url or os.environ.get(URL_VARIABLE)
    parsed = parse_url(url) if isinstance(url, str) else url
    if not ray.is_initialized():
        ray.init()
    return parsed or parse_url(embedded_url(deadline))


class Gateway:
    """An open namespace: safe store, fixed layout, running router."""

    def __init__(
        self, namespace: str, url: StoreUrl, options: dict[str, Any], deadline: Deadline
    ) -> None:
        self.namespace = check_name("namespace", namespace)
        self.url = url
        RouteConfig.of(options)
        self.store = Store(url)
        self.config = open_namespace(self.store, namespace, options)
        self.router = router_of(namespace, url, self.config)
        self.asked_at = now()
        self.welcome: Welcome = run(self.ask("hello"), deadline)
        self.config = self.welcome.config
        check_options(namespace, self.config, options)
        self.keys = Keys(namespace, self.config.shards)
        self.links = LinkCalls(self.keys, self.config)
        self._seen: list[int] = list(self.welcome.seen)
        self._seen_lock = threading.Lock()
        self.node: str = ray.get_runtime_context().get_node_id()

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Steps[Any]:
        """Ask the router; while it is being restarted, ask again until the deadline."""
        backoff_s = _BACKOFF_S
        asked = what = f"the router of namespace {self.namespace!r} ({method})"
        while True:
            try:
                return (yield Remote(getattr(self.router, method).remote(*args, **kwargs), what))
            except (ray.exceptions.RayActorError, RouterUnavailableError) as error:
                what = f"{asked}, which said: {_first_line(error)}"
                yield Pause(backoff_s, what)
                backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)
                yield Blocking(self.find_router, what)

    def read(self, shard: int, names: Sequence[tuple[str, str]]) -> Steps[list[Link | None]]:
        """Read the links of (service, uid) names of one shard straight from Redis.

        Where Redis has lost writes, have them replayed and read again: until the deadline.
        """
        what = f"Redis at {self.url.address}"
        while True:
            call = self.links.read(self.seen(shard), shard, names)
            reply = self.links.parse((yield Blocking(partial(self.store.one, call), what)))
            if reply.status == "ok":
                self.saw(shard, reply.counter)
                return reply.links
            yield from self.recover([shard])

    def recover(self, shards: Iterable[int]) -> Steps[None]:
        """Have the router write back what Redis has lost in some shards; return when it has."""
        lost = {shard: self.seen(shard) for shard in shards}
        yield from self.ask("recover", lost)

    # The highest counter that this process was told of each shard: how it notices lost writes.

    def seen(self, shard: int) -> int:
        """Return the highest counter or epoch that this process has seen for a shard."""
        return self._seen[shard]

    def all_seen(self) -> list[int]:
        """Return the same for every shard."""
        return list(self._seen)

    def saw(self, shard: int, counter: int) -> None:
        """Remember a counter or an epoch."""
        self.saw_all(((shard, counter),))

    def saw_all(self, seen: Iterable[tuple[int, int]]) -> None:
        """Remember counters or epochs of many shards."""
        with self._seen_lock:
            known = self._seen
            for shard, counter in seen:
                known[shard] = max(known[shard], counter)

    def find_router(self) -> None:
        """Look the router up again, and make one if Ray has none any more."""
        self.router = router_of(self.namespace, self.url, self.config)

    def close(self) -> None:
        """Close the connections."""
        self.store.close()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
