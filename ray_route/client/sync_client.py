"""`RouteClient`, whose methods block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from ray_route.client import many_uids, operations
from ray_route.client.base import DRAIN_S, ClientBase, seconds
from ray_route.client.calls import ManyCall, call, call_many
from ray_route.clock import Deadline, shorter
from ray_route.model import DrainProgress, Explanation, Link, LinkedPods, Pod, check_duration
from ray_route.runtime.tracing import span
from ray_route.runtime.waiting import Operation, name_of, run

if TYPE_CHECKING:
    from ray_route.client.batch import Progress

T = TypeVar("T")


class RouteClient(ClientBase):
    """A client of one namespace. Thread-safe; cheap to make twice in a process.

    Every method takes `timeout` in seconds (None: 30, or inside a call of a pod what is left of
    that one's time) and raises `RouteTimeoutError` past it, saying what it waited for. All raise
    `InvalidInputError` for bad arguments, having changed nothing; `StoreUnavailableError` where
    Redis, `RouterUnavailableError` where the router does not answer: a failure is never a "no
    link". `ClosedError` after `close`, `RayGoneError` once this process has left its Ray.
    """

    def _run(self, operation: Operation[T], timeout: float | None) -> T:
        with span(name_of(operation), self.namespace):
            return run(operation, Deadline.after(seconds(timeout)))

    def compute_linked_pod(self, uid: str, service: str, *, timeout: float | None = None) -> Link:
        """Return the uid's link, placing the uid if it has none, relinking it if its pod is gone.

        All callers in all processes get the same pod and epoch. Raises `NoAvailablePodError` if
        the uid has no link and no pod is ready.
        """
        hit = self._hit(service, uid)
        if hit is not None and (timeout is None or check_duration("timeout", timeout)):
            return hit
        return self._run(operations.compute(self._session, uid, service), timeout)

    def compute_linked_pods(
        self, uids: Iterable[str], service: str, *, timeout: float | None = None
    ) -> dict[str, Any]:
        """Do the same for many uids in one go: one outcome per uid, a `Link` or a `RouteError`."""
        return self._run(many_uids.compute_many(self._session, uids, service), timeout)

    def get_linked_pod(
        self, uid: str, service: str, *, timeout: float | None = None
    ) -> Link | None:
        """Return the uid's link from the near cache, the router or Redis; None: it has none."""
        hit = self._hit(service, uid)
        if hit is not None and (timeout is None or check_duration("timeout", timeout)):
            return hit
        return self._run(operations.get(self._session, uid, service), timeout)

    def get_linked_pod_not_cache(
        self, uid: str, service: str, *, timeout: float | None = None
    ) -> Link | None:
        """Return the uid's link straight from Redis; fills no cache."""
        return self._run(operations.stored(self._session, uid, service), timeout)

    def get_linked_pod_in_cache_or_if_persist(
        self, uid: str, service: str, *, timeout: float | None = None
    ) -> Link | None:
        """Return the near cache's link, else the stored one if that is persistent."""
        hit = self._hit(service, uid)
        if hit is not None and (timeout is None or check_duration("timeout", timeout)):
            return hit
        return self._run(operations.cached_or_persistent(self._session, uid, service), timeout)

    def cache_expired(self, uid: str, service: str, *, timeout: float | None = None) -> Link | None:
        """Drop the uid from this process's near cache and from the router's; return what was."""
        return self._run(operations.expire(self._session, uid, service), timeout)

    def set_cache(
        self, uid: str, service: str, link: Link, *, timeout: float | None = None
    ) -> Link | None:
        """Put a link into the near cache; return the link that was cached before.

        The link is compared with Redis first, since a copy may come from another process and be
        out of date: one that the directory does not hold is not cached. Never beyond its lease.
        """
        return self._run(operations.set_cache(self._session, uid, service, link), timeout)

    def set_linked_pod_if_absent(
        self,
        uid: str,
        service: str,
        pod: int,
        *,
        persistent: bool = False,
        timeout: float | None = None,
    ) -> Link:
        """Link the uid to `pod` unless it has a link; return the link that holds, the winner's.

        A live temporary link gets its TTL refreshed. Raises `InvalidInputError` for an unknown
        pod, `PodUnavailableError` for one that takes no links.
        """
        return self._run(
            operations.set_if_absent(self._session, uid, service, pod, persistent=persistent),
            timeout,
        )

    def move(self, uid: str, service: str, pod: int, *, timeout: float | None = None) -> Link:
        """Move the uid to `pod` by way of its owner, with its hooks; return the new link.

        The link keeps its kind; a uid without one gets a temporary one. Raises
        `InvalidInputError` for an unknown pod, `PodUnavailableError` if `pod` takes no uids, or
        if the owner kept the uid because a call for it did not end in time.
        """
        operation = operations.move(self._session, uid, service, pod, shorter(seconds(timeout)))
        return self._run(operation, timeout)

    def remove(
        self, uid: str, service: str, *, after_s: float = 0.0, timeout: float | None = None
    ) -> bool:
        """End a uid's session, now or `after_s` seconds from now; False if it has no link.

        Its pod refuses the uid, lets its calls end and runs `on_release`; then the link goes, and
        the pod's load falls. A later call places the uid anew. Raises `PodUnavailableError` if the
        pod kept the uid because a call for it did not end in time.
        """
        timeout_s = shorter(seconds(timeout))
        operation = operations.remove(self._session, uid, service, after_s, timeout_s)
        return self._run(operation, timeout)

    def get_link_service(self, uid: str, *, timeout: float | None = None) -> dict[str, Link]:
        """Return every service that the uid is linked to now, temporary links too."""
        return self._run(operations.link_service(self._session, uid), timeout)

    def batch_get_linked_pod(
        self,
        uids: Iterable[str],
        service: str,
        *,
        num_cpus: float = 1.0,
        max_in_flight: int = 32,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> LinkedPods:
        """Return the links of many uids as stored, read around the router; fills no cache.

        Up to 50,000 uids are read by this process, more by stateless Ray tasks.

        Args:
            uids: any number; duplicates are answered as often as they are asked.
            service: one service.
            num_cpus: what each task asks of Ray. A cluster whose CPUs are all taken runs no
                task: give 0 to run them all the same.
            max_in_flight: tasks under way at a time.
            progress: called with (uids done, uids in all) after each part, in the calling
                thread or on the running event loop; what it raises ends the batch.
            timeout: seconds.

        Raises `PartialBatchError` if shards failed: it names them and carries the other answers.
        So does `RouteTimeoutError`: see their `partial` and `unanswered`.

        """
        deadline = Deadline.after(seconds(timeout))
        how = (num_cpus, max_in_flight, progress)
        with span("batch", self.namespace):
            return run(many_uids.batch(self._session, uids, service, deadline, *how), deadline)

    def actor(self, uid: str, service: str, *, timeout: float | None = None) -> Any:
        """Return the Ray handle of the uid's pod, placing the uid if need be.

        A plain handle: calls on it are not fenced, and it does not follow a relink. Use `call`
        for calls that must never reach a pod which no longer owns the uid.
        """
        return self._run(operations.actor(self._session, uid, service), timeout)

    def call(
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
        """Call `method(*args, **kwargs)` on the uid's pod and return its result.

        Fenced: the pod admits the call only while it owns the uid. A refusal is followed to the
        new owner. A pod's death raises `PodUnavailableError`, whose `may_have_run` says whether
        the call may have run; with `idempotent=True` the call is repeated at the new owner
        until the timeout. So does `RouteTimeoutError`: a call that was sent in time may run on.
        What the user's code raises keeps its type, and its text begins with the user's traceback;
        but errors of ray_route that it met in calls of its own are in a `NestedCallError`. What
        can't be pickled, result or exception, is an `UnpicklableError`. A method that is not there,
        or is a generator, is an `InvalidInputError`: nothing has run.
        """
        operation = call(self._session, uid, service, method, args, kwargs, idempotent=idempotent)
        return self._run(operation, timeout)

    def call_many(
        self,
        calls: Iterable[ManyCall],
        service: str,
        method: str,
        *,
        idempotent: bool = False,
        timeout: float | None = None,
    ) -> list[Any]:
        """Make many calls `(uid, args)` of one method, with one Ray call per pod.

        A call may have keywords, too: `(uid, args, keywords)`. Returns one outcome per call, in
        the order given: its result, or the exception that `call` would have raised. Each is
        fenced and followed by itself; a pod runs its own in the order given (an async pod: all
        at once). Arguments that are `ObjectRef`s are resolved, as `call` does; such a call is
        sent by itself, behind those without.
        """
        operation = call_many(self._session, calls, service, method, idempotent=idempotent)
        return self._run(operation, timeout)

    def explain(self, uid: str, service: str, *, timeout: float | None = None) -> Explanation:
        """Say why the uid is where it is; print the answer."""
        return self._run(operations.explain(self._session, uid, service), timeout)

    def pods(self, service: str, *, timeout: float | None = None) -> dict[int, Pod]:
        """Return all pods that the service ever had, by index, dead ones included."""
        return self._run(operations.pods(self._session, service), timeout)

    def sweep(self, service: str, *, timeout: float | None = None) -> int:
        """Move the uids of dead pods now; return how many there were.

        Otherwise each moves at its next touch. Scans the whole store, a little at a time.
        """
        return self._run(operations.sweep(self._session, service), timeout)

    def drain(
        self,
        service: str,
        pod: int,
        deadline_s: float = DRAIN_S,
        *,
        go_on: bool = False,
        timeout: float | None = None,
    ) -> Iterator[DrainProgress]:
        """Drain one pod: no new uids, then uid by uid to others, then no calls any more.

        Begins at once and costs no call: running ones end, others follow their uid. Yields
        progress until one is `done`; stopping to iterate does not stop the drain.

        A drain that did not empty the pod ends with a `problem`, and the pod serves what it has
        left and takes new uids again: at once, having changed nothing, if no other pod is READY
        and none is being restarted; past `deadline_s` seconds, unless it is told to `go_on`; when
        the last of the others is gone. A drain that is under way goes by the deadline of whoever
        asked last, and both are told so (`notice`); the earlier caller watches until its own.
        `timeout` is for each answer.
        """
        begun = self._run(
            operations.begin_drain(self._session, service, pod, deadline_s, go_on=go_on), timeout
        )
        return self._drained(begun, timeout)

    def _drained(self, drain: operations.Drain, timeout: float | None) -> Iterator[DrainProgress]:
        done = False
        while not done:
            progress = self._run(operations.watch_drain(self._session, drain), timeout)
            done = progress.done
            yield progress

    def close(self) -> None:
        """End this client, once however often it is called. Router, pods and links stay.

        Other clients of the process go on. Used later, this one raises `ClosedError`. If an
        interrupt cuts this short, call it again.
        """
        self._close()

    def __enter__(self) -> RouteClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
