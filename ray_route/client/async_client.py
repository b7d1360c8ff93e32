"""`AsyncRouteClient`, whose methods are awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from ray_route.client import many_uids, operations
from ray_route.client.base import DRAIN_S, ClientBase, seconds
from ray_route.client.calls import ManyCall, call, call_many
from ray_route.clock import Deadline, shorter
from ray_route.model import DrainProgress, Explanation, Link, LinkedPods, Pod, check_duration
from ray_route.runtime.tracing import span
from ray_route.runtime.waiting import Operation, name_of, run_async

if TYPE_CHECKING:
    from ray_route.client.batch import Progress

T = TypeVar("T")


class AsyncRouteClient(ClientBase):
    """The same methods as `RouteClient`, awaited; they never block the event loop."""

    async def _run(self, operation: Operation[T], timeout: float | None) -> T:
        with span(name_of(operation), self.namespace):
            return await run_async(operation, Deadline.after(seconds(timeout)))

    async def compute_linked_pod(
        self, uid: str, service: str, *, timeout: float | None = None
    ) -> Link:
        """See `RouteClient.compute_linked_pod`."""
        hit = self._hit(service, uid)
        if hit is not None and (timeout is None or check_duration("timeout", timeout)):
            return hit
        return await self._run(operations.compute(self._session, uid, service), timeout)

    async def compute_linked_pods(
        self, uids: Iterable[str], service: str, *, timeout: float | None = None
    ) -> dict[str, Any]:
        """See `RouteClient.compute_linked_pods`."""
        return await self._run(many_uids.compute_many(self._session, uids, service), timeout)

    async def get_linked_pod(
        self, uid: str, service: str, *, timeout: float | None = None
    ) -> Link | None:
        """See `RouteClient.get_linked_pod`."""
        hit = self._hit(service, uid)
        if hit is not None and (timeout is None or check_duration("timeout", timeout)):
            return hit
        return await self._run(operations.get(self._session, uid, service), timeout)

    async def get_linked_pod_not_cache(
        self, uid: str, service: str, *, timeout: float | None = None
    ) -> Link | None:
        """See `RouteClient.get_linked_pod_not_cache`."""
        return await self._run(operations.stored(self._session, uid, service), timeout)

    async def get_linked_pod_in_cache_or_if_persist(
        self, uid: str, service: str, *, timeout: float | None = None
    ) -> Link | None:
        """See `RouteClient.get_linked_pod_in_cache_or_if_persist`."""
        hit = self._hit(service, uid)
        if hit is not None and (timeout is None or check_duration("timeout", timeout)):
            return hit
        return await self._run(
            operations.cached_or_persistent(self._session, uid, service), timeout
        )

    async def cache_expired(
        self, uid: str, service: str, *, timeout: float | None = None
    ) -> Link | None:
        """See `RouteClient.cache_expired`."""
        return await self._run(operations.expire(self._session, uid, service), timeout)

    async def set_cache(
        self, uid: str, service: str, link: Link, *, timeout: float | None = None
    ) -> Link | None:
        """See `RouteClient.set_cache`."""
        return await self._run(operations.set_cache(self._session, uid, service, link), timeout)

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
            operations.set_if_absent(self._session, uid, service, pod, persistent=persistent),
            timeout,
        )

    async def move(self, uid: str, service: str, pod: int, *, timeout: float | None = None) -> Link:
        """See `RouteClient.move`."""
        operation = operations.move(self._session, uid, service, pod, shorter(seconds(timeout)))
        return await self._run(operation, timeout)

    async def remove(
        self, uid: str, service: str, *, after_s: float = 0.0, timeout: float | None = None
    ) -> bool:
        """See `RouteClient.remove`."""
        timeout_s = shorter(seconds(timeout))
        operation = operations.remove(self._session, uid, service, after_s, timeout_s)
        return await self._run(operation, timeout)

    async def get_link_service(self, uid: str, *, timeout: float | None = None) -> dict[str, Link]:
        """See `RouteClient.get_link_service`."""
        return await self._run(operations.link_service(self._session, uid), timeout)

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
        how = (num_cpus, max_in_flight, progress)
        with span("batch", self.namespace):
            return await run_async(
                many_uids.batch(self._session, uids, service, deadline, *how), deadline
            )

    async def actor(self, uid: str, service: str, *, timeout: float | None = None) -> Any:
        """See `RouteClient.actor`."""
        return await self._run(operations.actor(self._session, uid, service), timeout)

    async def call(
        self,
        uid: str,
        service: str,
        method: str,
        /,
        *args: Any,
        idempotent: bool = False,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `RouteClient.call`."""
        operation = call(self._session, uid, service, method, args, kwargs, idempotent=idempotent)
        return await self._run(operation, timeout)

    async def call_many(
        self,
        calls: Iterable[ManyCall],
        service: str,
        method: str,
        *,
        idempotent: bool = False,
        timeout: float | None = None,
    ) -> list[Any]:
        """See `RouteClient.call_many`."""
        operation = call_many(self._session, calls, service, method, idempotent=idempotent)
        return await self._run(operation, timeout)

    async def explain(self, uid: str, service: str, *, timeout: float | None = None) -> Explanation:
        """See `RouteClient.explain`."""
        return await self._run(operations.explain(self._session, uid, service), timeout)

    async def pods(self, service: str, *, timeout: float | None = None) -> dict[int, Pod]:
        """See `RouteClient.pods`."""
        return await self._run(operations.pods(self._session, service), timeout)

    async def sweep(self, service: str, *, timeout: float | None = None) -> int:
        """See `RouteClient.sweep`."""
        return await self._run(operations.sweep(self._session, service), timeout)

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
        begun = await self._run(
            operations.begin_drain(self._session, service, pod, deadline_s, go_on=go_on), timeout
        )
        done = False
        while not done:
            progress = await self._run(operations.watch_drain(self._session, begun), timeout)
            done = progress.done
            yield progress

    async def close(self) -> None:
        """See `RouteClient.close`."""
        await asyncio.to_thread(self._close)

    async def __aenter__(self) -> AsyncRouteClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
