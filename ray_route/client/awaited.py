"""The client driver, awaited: `AsyncRouteClient`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeVar

from ray_route.client.base import DRAIN_S, ClientBase, seconds
from ray_route.client.batch import BatchOptions, Progress
from ray_route.client.calls import call, call_many
from ray_route.client.session import close_session
from ray_route.clock import Deadline, shorter
from ray_route.model import DrainProgress, Explanation, Link, LinkedPods, Pod, check_duration
from ray_route.steps import Steps, name_of, run_async
from ray_route.tracing import span

T = TypeVar("T")


class AsyncRouteClient(ClientBase):
    """The same methods as `RouteClient`, awaited; they never block the event loop."""

    async def _run(self, steps: Steps[T], timeout: float | None) -> T:
        with span(name_of(steps), self.namespace):
            return await run_async(steps, Deadline.after(seconds(timeout)))

    async def compute_linked_pod(
        self, uid: str, service: str, *, timeout: float | None = None
    ) -> Link:
        """See `RouteClient.compute_linked_pod`."""
        hit = self._hit(service, uid)
        if hit is not None and (timeout is None or check_duration("timeout", timeout)):
            return hit
        return await self._run(self._ops.compute(uid, service), timeout)

    async def compute_linked_pods(
        self, uids: Iterable[str], service: str, *, timeout: float | None = None
    ) -> dict[str, Any]:
        """See `RouteClient.compute_linked_pods`."""
        return await self._run(self._ops.compute_many(uids, service), timeout)

    async def get_linked_pod(
        self, uid: str, service: str, *, timeout: float | None = None
    ) -> Link | None:
        """See `RouteClient.get_linked_pod`."""
        hit = self._hit(service, uid)
        if hit is not None and (timeout is None or check_duration("timeout", timeout)):
            return hit
        return await self._run(self._ops.get(uid, service), timeout)

    async def get_linked_pod_not_cache(
        self, uid: str, service: str, *, timeout: float | None = None
    ) -> Link | None:
        """See `RouteClient.get_linked_pod_not_cache`."""
        return await self._run(self._ops.stored(uid, service), timeout)

    async def get_linked_pod_in_cache_or_if_persist(
        self, uid: str, service: str, *, timeout: float | None = None
    ) -> Link | None:
        """See `RouteClient.get_linked_pod_in_cache_or_if_persist`."""
        hit = self._hit(service, uid)
        if hit is not None and (timeout is None or check_duration("timeout", timeout)):
            return hit
        return await self._run(self._ops.cached_or_persistent(uid, service), timeout)

    async def cache_expired(
        self, uid: str, service: str, *, timeout: float | None = None
    ) -> Link | None:
        """See `RouteClient.cache_expired`."""
        return await self._run(self._ops.expire(uid, service), timeout)

    async def set_cache(
        self, uid: str, service: str, link: Link, *, timeout: float | None = None
    ) -> Link | None:
        """See `RouteClient.set_cache`."""
        return await self._run(self._ops.set_cache(uid, service, link), timeout)

    async def set_linked_pod_if_absent(
        self,
        uid: str,
        service: str,
        pod: int,
        *,
        persistent: bool = False,
        timeout: float | None = None,
    ) -> Link:
        """See `RouteClient.set_linked_pod_if_absent`."""
        return await self._run(
            self._ops.set_if_absent(uid, service, pod, persistent=persistent), timeout
        )

    async def move(self, uid: str, service: str, pod: int, *, timeout: float | None = None) -> Link:
        """See `RouteClient.move`."""
        steps = self._ops.move(uid, service, pod, shorter(seconds(timeout)))
        return await self._run(steps, timeout)

    async def get_link_service(self, uid: str, *, timeout: float | None = None) -> dict[str, Link]:
        """See `RouteClient.get_link_service`."""
        return await self._run(self._ops.link_service(uid), timeout)

    async def batch_get_linked_pod(
        self,
        uids: Iterable[str],
        service: str,
        *,
        num_cpus: float = 1.0,
        max_in_flight: int = 32,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> LinkedPods:
        """See `RouteClient.batch_get_linked_pod`."""
        deadline = Deadline.after(seconds(timeout))
        options = BatchOptions(num_cpus, max_in_flight, progress)
        with span("batch", self.namespace):
            return await run_async(self._ops.batch(uids, service, deadline, options), deadline)

    async def actor(self, uid: str, service: str, *, timeout: float | None = None) -> Any:
        """See `RouteClient.actor`."""
        return await self._run(self._ops.actor(uid, service), timeout)

    async def call(
        self,
        uid: str,
        service: str,
        method: str,
        *args: Any,
        idempotent: bool = False,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `RouteClient.call`."""
        steps = call(self._ops, uid, service, method, args, kwargs, idempotent=idempotent)
        return await self._run(steps, timeout)

    async def call_many(
        self,
        calls: Iterable[tuple[str, tuple[Any, ...]]],
        service: str,
        method: str,
        *,
        idempotent: bool = False,
        timeout: float | None = None,
    ) -> list[Any]:
        """See `RouteClient.call_many`."""
        steps = call_many(self._ops, calls, service, method, idempotent=idempotent)
        return await self._run(steps, timeout)

    async def explain(self, uid: str, service: str, *, timeout: float | None = None) -> Explanation:
        """See `RouteClient.explain`."""
        return await self._run(self._ops.explain(uid, service), timeout)

    async def pods(self, service: str, *, timeout: float | None = None) -> dict[int, Pod]:
        """See `RouteClient.pods`."""
        return await self._run(self._ops.pods(service), timeout)

    async def sweep(self, service: str, *, timeout: float | None = None) -> int:
        """See `RouteClient.sweep`."""
        return await self._run(self._ops.sweep(service), timeout)

    async def drain(
        self,
        service: str,
        pod: int,
        deadline_s: float = DRAIN_S,
        *,
        go_on: bool = False,
        timeout: float | None = None,
    ) -> AsyncIterator[DrainProgress]:
        """See `RouteClient.drain`; begins with the iteration."""
        await self._run(self._ops.begin_drain(service, pod, deadline_s, go_on=go_on), timeout)
        done = False
        while not done:
            asked = self._ops.watch_drain(service, pod, deadline_s, go_on=go_on)
            progress = await self._run(asked, timeout)
            done = progress.done
            yield progress

    async def close(self) -> None:
        """See `RouteClient.close`."""
        await asyncio.to_thread(close_session, self._session)

    async def __aenter__(self) -> AsyncRouteClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
