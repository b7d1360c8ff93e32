"""The way into a namespace: its store, its layout, its router.

What clients and agents both need before anything else.
"""

from __future__ import annotations

import contextlib
import math
import os
import pkgutil
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import ray

from ray_route.clock import Deadline, now
from ray_route.config import RouteConfig
from ray_route.errors import (
    ClosedError,
    RayGoneError,
    RouterUnavailableError,
    StoreUnavailableError,
)
from ray_route.model import Link, check_name
from ray_route.protocol.names import RAY_NAMESPACE, router_name
from ray_route.protocol.welcome import Vouched, Welcome
from ray_route.runtime.belief import Belief
from ray_route.runtime.embedded_actor import embedded_url
from ray_route.runtime.given_up import making
from ray_route.runtime.joined_ray import joined_ray
from ray_route.runtime.joining import ensure_ray, exit_at_sigterm
from ray_route.runtime.link_reads import Awaited, LinkReads, Part
from ray_route.runtime.local_rays import MARK
from ray_route.runtime.waiting import (
    Blocking,
    Operation,
    Pause,
    Remote,
    Stage,
    Wait,
    answer_beside,
    run,
    within,
)
from ray_route.runtime.worker import Worker
from ray_route.store.connect import Store
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls, readable
from ray_route.store.namespaces import check_options, open_namespace
from ray_route.store.url import StoreUrl, parse_url

URL_VARIABLE = "RAY_ROUTE_REDIS_URL"

# By name: whoever comes first makes the router, client or pod, and neither is built on it.
_ROUTER_CLASS = "ray_route.router.actor:Router"
_ROUTER_CONCURRENCY = 10_000

_BACKOFF_S = 0.02
_MAX_BACKOFF_S = 0.5
# A router that finds writes lost waits so long, and a little, for the pods that remember them.
_VOUCH_S = 25.0
_STOP_S = 0.03


# How long `close` waits for a thread that looks the router up just now.
_LAST_LOOK_S = 2.0


def resolve_url(
    redis_url: str | StoreUrl | None, deadline: Deadline, stage: Stage | None = None
) -> StoreUrl:
    """Return the store's URL; join or start a Ray if this process is in none.

    Without a URL: `RAY_ROUTE_REDIS_URL`, else the Ray session's embedded server. Waits for Ray,
    which may take longer than `deadline`: so call it by `within`.
    """
    stage = stage or Stage("")
    url = redis_url or os.environ.get(URL_VARIABLE)
    parsed = parse_url(url) if isinstance(url, str) else url
    ensure_ray(deadline, stage)
    stage.what = "the embedded server"
    return parsed or parse_url(embedded_url(deadline))


class Namespace:
    """An open namespace: safe store, fixed layout, running router."""

    def __init__(
        self,
        name: str,
        url: StoreUrl,
        options: dict[str, Any],
        deadline: Deadline,
        stage: Stage | None = None,
    ) -> None:
        self.name = check_name("namespace", name)
        self.url = url
        self._joined = joined_ray()
        RouteConfig.of(options)
        self.store = Store(url)
        try:
            self._open(options, deadline, stage or Stage(""))
        except BaseException:
            self.store.close()
            raise

    def _open(self, options: dict[str, Any], deadline: Deadline, stage: Stage) -> None:
        name = self.name
        stage.what = f"Redis at {self.url.address}"
        self.config = open_namespace(self.store, name, options)
        self._finding = threading.Lock()
        self._closed = False
        stage.what = f"Ray to find the router of namespace {name!r}"
        mark_ray()
        self.find_router()
        self.asked_at = now()
        self.welcome: Welcome = run(self.ask("hello"), deadline)
        self.config = self.welcome.config
        check_options(name, self.config, options)
        self.keys = Keys(name, self.config.shards)
        self.links = LinkCalls(self.keys, self.config)
        self._seen: list[int] = list(self.welcome.seen)
        self._seen_lock = threading.Lock()
        self.node: str = ray.get_runtime_context().get_node_id()
        self._heard_of = ""
        # What has a thread comes last: nothing that may fail follows.
        self.worker = Worker("ray_route-reads")
        self.belief = Belief(self.store, self._vouch)
        self.reads = LinkReads(self.worker, self.belief, self.links, self.seen, self.saw_all)

    # The router.

    def check_here(self) -> None:
        """Raise `RayGoneError` unless this process is still in the Ray of this namespace.

        To be asked before anything is asked of Ray, which would start another.
        """
        if joined_ray() is not self._joined:
            raise RayGoneError(what=f"namespace {self.name!r}", namespace=self.name)

    @property
    def router(self) -> Any:
        """The handle of the router as it was last found; raises `RayGoneError`."""
        self.check_here()
        return self._router

    def find_router(self) -> None:
        """Look the router up, and make one if Ray has none. Waits for Ray, however long.

        Not after `close`: a thread whose last call is under way then would hear of the router's
        end, and bring back what was ended for good. Raises `RouterUnavailableError`.
        """
        with self._finding:
            if self._closed:
                raise RouterUnavailableError(
                    namespace=self.name, reason="this process has left the namespace"
                )
            self.check_here()
            self._router = _router_of(self.name, self.url, self.config)

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Operation[Any]:
        """Ask the router; while it is being restarted, ask again until the deadline."""

        def send(what: str) -> Wait:
            return Remote(getattr(self.router, method).remote(*args, **kwargs), what)

        return self.until_answered(send, self._answer_to(method))

    def ask_now(self, method: str, *args: Any, timeout_s: float) -> Any:
        """Ask the router as it was last found, once; raises what Ray does, too."""
        asked = getattr(self.router, method).remote(*args)
        return answer_beside(asked, self._answer_to(method), Deadline.after(timeout_s))

    def _answer_to(self, method: str) -> str:
        """Return what is waited for, in words."""
        return f"the router of namespace {self.name!r} ({method})"

    def until_answered(self, send: Callable[[str], Wait], what: str) -> Operation[Any]:
        """Wait for a router's answer; send again while there is no router, until the deadline.

        `send` is told what is waited for, in words, and returns the wait for one attempt.
        """
        backoff_s, asked = _BACKOFF_S, what
        while True:
            try:
                return (yield send(what))
            except (ray.exceptions.RayActorError, RouterUnavailableError) as error:
                if not getattr(error, "passes", True):
                    raise
                what = f"{asked}, which said: {_first_line(error)}"
                yield Pause(backoff_s, what)
                backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)
                yield Blocking(self.find_router, what, longest_s=math.inf)

    # Links straight from Redis.

    def read(self, shard: int, names: Sequence[tuple[str, str]]) -> Operation[list[Link | None]]:
        """Read the links of (service, uid) names of one shard straight from Redis.

        By a server that a router has vouched for; where Redis has lost writes, have them recovered
        and read again: until the deadline.
        """
        what, was_lost = f"Redis at {self.url.address}", False
        while True:
            (reading,) = yield Awaited(self.reads.ask([Part(shard, names)]), what, self.check_here)
            if isinstance(reading, Exception):
                raise reading
            if reading is None:
                yield from self.believe(shard)
            elif reading.reply.status == "ok":
                return readable(reading.reply.links)
            else:
                if was_lost:  # whom a router has just compared is another by now
                    self.reads.doubt(shard)
                    yield Pause(_BACKOFF_S, what)
                yield from self.recover([shard])
                was_lost = True

    def believe(self, shard: int) -> Operation[None]:
        """Return once a router has vouched for the server of a shard; raise what prevents it."""

        def renewed(what: str) -> Awaited:
            return Awaited(self.belief.renewed(), what, self.check_here)

        what = f"a router to vouch for Redis at {self.url.address}"
        try:
            yield from self.until_answered(renewed, what)
        except StoreUnavailableError:
            if not self.reads.believes(shard):  # else it is another that is away
                raise

    def hear_of_servers(self, servers: str) -> None:
        """Take in which servers a router saw last: others are not believed (see `Vouched`)."""
        if servers and servers != self._heard_of:  # else each would void what is just being asked
            self._heard_of = servers
            self.belief.keep_only(servers.split(","))
            if self.url.kind == "sentinel":  # which looks for the primary, for all connections
                self.belief.renewed()

    def _vouch(self) -> Vouched:
        """Ask the router once which servers have lost nothing; blocks."""
        if not ray.is_initialized():  # else the question would start another Ray
            raise RouterUnavailableError(namespace=self.name, reason="this process has left Ray")
        vouched = run(self._vouched(), Deadline.after(_VOUCH_S))
        self.saw_all(enumerate(vouched.seen))
        return vouched

    def _vouched(self) -> Operation[Vouched]:
        what = self._answer_to("vouch")
        return (yield Remote(self.router.vouch.remote(), what))  # type: ignore[no-any-return]

    def recover(self, shards: Iterable[int]) -> Operation[None]:
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

    def close(self) -> None:
        """Close the connections; the router is looked for no more once this returns.

        A look that Ray does not answer is waited for no longer than `_LAST_LOOK_S`.
        """
        self._closed = True
        if self._finding.acquire(timeout=_LAST_LOOK_S):
            self._finding.release()
        self.belief.close()
        closed = ClosedError(what=f"namespace {self.name!r}", namespace=self.name)
        self.reads.close(closed)
        self.worker.stop(_STOP_S)
        self.store.close()


def namespace_within(
    deadline: Deadline, name: str, redis_url: str | StoreUrl | None, options: dict[str, Any]
) -> Namespace:
    """Open a namespace; raise `RouteTimeoutError` at the deadline, wherever it is then."""
    exit_at_sigterm()
    stage = Stage("Ray")

    def opened() -> Namespace:
        url = resolve_url(redis_url, deadline, stage)
        return Namespace(name, url, options, deadline, stage)

    return within(deadline, stage, opened, undo=Namespace.close)


def _router_of(namespace: str, url: StoreUrl, config: RouteConfig) -> Any:
    """Return the handle of a namespace's router, making it if there is none."""
    with contextlib.suppress(ValueError):
        # Without its class: to load that takes a fresh process longer than all else here.
        return ray.get_actor(router_name(namespace), namespace=RAY_NAMESPACE)
    router: Any = ray.remote(pkgutil.resolve_name(_ROUTER_CLASS)).options(
        name=router_name(namespace),
        namespace=RAY_NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=_ROUTER_CONCURRENCY,
        scheduling_strategy="DEFAULT",  # not in its maker's placement group, to end with that
    )
    with making():
        return router.remote(namespace, url, config)


def mark_ray() -> None:
    """Leave a folder in the session of this machine's Ray: it says that ray_route is used there."""
    context = ray.get_runtime_context()
    with contextlib.suppress(OSError, AttributeError):  # by Ray Client there is no such session
        session = Path(context.get_temp_dir()) / context.get_session_name()
        (session / MARK).mkdir(mode=0o700, exist_ok=True)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
