"""Ray Serve's ways to route by session, side by side: deployments, and how to ask for a session.

In a module of its own, so that Serve's replicas can import it.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from benchmarks.conversation_trace import TOKENS, Prompt
from ray_route.store.embedded import free_port

REPLICAS = 4
NAMESPACE = "bench-serve"
MODELS = 100_000  # no state is lost beyond a cap here, as it is with a smaller one


class Chat:
    """Holds nothing; says which replica it is."""

    def __init__(self) -> None:
        """Learn its own name."""
        self.here = serve.get_replica_context().replica_id.unique_id, os.getpid()

    @serve.multiplexed(max_num_models_per_replica=MODELS)
    async def load(self, model: str) -> str:
        """Load what a session needs, where sessions are taken for models."""
        return model

    async def ask(self, seconds: float = 0.0) -> tuple[str, int]:
        """Return replica and process."""
        await self._meet()
        if seconds:
            await asyncio.sleep(seconds)
        return self.here

    async def _meet(self) -> None:
        model = serve.get_multiplexed_model_id()
        if model:
            await self.load(model)


class PrefixCache(Chat):
    """A model of a KV cache: the prefix blocks that it has seen, least recently used first out."""

    def __init__(self, capacity: int, tokens_per_s: float = 0.0) -> None:
        """Begin with an empty cache of so many blocks; 0 tokens a second take no time."""
        super().__init__()
        self._capacity = capacity
        self._tokens_per_s = tokens_per_s
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self._computing = asyncio.Lock()

    async def prefill(self, prompt: Prompt) -> tuple[int, int]:
        """Return how many leading blocks were here, and the process; one prompt at a time."""
        await self._meet()
        async with self._computing:
            found = self._take_in(prompt.blocks)
            if self._tokens_per_s:
                new = (len(prompt.blocks) - found) * TOKENS
                await asyncio.sleep(new / self._tokens_per_s)
        return found, self.here[1]

    def _take_in(self, blocks: list[int]) -> int:
        known = self._blocks
        found = next((n for n, block in enumerate(blocks) if block not in known), len(blocks))
        for block in blocks:
            known[block] = None
            known.move_to_end(block)
        while len(known) > self._capacity:
            known.popitem(last=False)
        return found


class Front:
    """Calls another deployment for many sessions at once, from one request."""

    def __init__(self, chat: DeploymentHandle[Any], peer: Peer) -> None:
        """Keep the handle."""
        self._chat, self._peer = chat, peer

    async def many(self, sessions: list[str], patience_s: float) -> int:
        """Return how many of the calls did not end in time."""
        calls = [
            asyncio.wait_for(_answer(self._peer.ask(self._chat, session, 0.02)), patience_s)
            for session in sessions
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        return sum(isinstance(answer, BaseException) for answer in answers)


async def _answer(response: DeploymentResponse[Any]) -> Any:
    return await response


@dataclass(frozen=True)
class Peer:
    """One way to route."""

    name: str
    router: str | None = None
    by_model: bool = False
    options: tuple[tuple[str, Any], ...] = ()

    def config(self) -> RequestRouterConfig:
        """Return what Serve is told."""
        if self.router is None:
            return RequestRouterConfig()
        return RequestRouterConfig(
            request_router_class=self.router, request_router_kwargs=dict(self.options)
        )

    def of(self, handle: DeploymentHandle[Any], session: str) -> DeploymentHandle[Any]:
        """Return a handle for one session's requests."""
        if self.by_model:
            return handle.options(multiplexed_model_id=session)
        return handle.options(session_id=session)

    def ask(
        self, handle: DeploymentHandle[Any], session: str, seconds: float = 0.0
    ) -> DeploymentResponse[Any]:
        """Ask for a session's replica."""
        words = (seconds,) if seconds else ()  # a router that reads prompts takes any for one
        return self.of(handle, session).ask.remote(*words)

    @property
    def app(self) -> str:
        """Name of its application."""
        return self.name.replace(" ", "-")

    def deploy(self, cls: type, replicas: int, *args: Any, nested: bool = False) -> Any:
        """Run, or scale, an application of this peer; return its handle."""
        options = {"num_cpus": 0}
        deployment = serve.deployment(cls).options(
            name="Chat",
            num_replicas=replicas,
            ray_actor_options=options,
            request_router_config=self.config(),
            max_ongoing_requests=100,
            graceful_shutdown_wait_loop_s=0.1,
            health_check_period_s=1,
        )
        # As with a configuration file that changes nothing else; `serve.run` by itself takes
        # every deployment for a new version, and replaces all replicas.
        deployment._version = "1"  # type: ignore[attr-defined]
        app = deployment.bind(*args)
        if nested:
            app = serve.deployment(Front).options(ray_actor_options=options).bind(app, self)
        name = f"{self.app}-nested" if nested else self.app
        return serve.run(app, name=name, route_prefix=f"/{name}")


_STICKY = "ray_route.serve.StickyRequestRouter"
PEERS = (
    Peer("power of two"),
    Peer("consistent hash", "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"),
    Peer("multiplexed", by_model=True),
    Peer("sticky", _STICKY, options=(("namespace", NAMESPACE),)),
)
BY_GROUP = Peer(
    "sticky, by group", _STICKY, options=(("namespace", NAMESPACE), ("placement", "together"))
)
# By the file that has it: `ray.serve.llm` has the same class, but can't be imported without vLLM.
BY_PREFIX = Peer(
    "prefix affinity",
    "ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router."
    "PrefixCacheAffinityRouter",
)


@contextmanager
def running_serve() -> Iterator[None]:
    """Run a Serve of its own, on a free port."""
    search = {"PYTHONPATH": str(Path(__file__).parents[1])}
    ray.init(
        num_cpus=os.cpu_count(),
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": search},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": free_port()}, logging_config=_quiet())
    try:
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


def _quiet() -> Any:
    return serve.schema.LoggingConfig(enable_access_log=False, log_level="WARNING")
