"""What there is of one service, as Ray and its pod table have it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from ray_route.client.session import Session
from ray_route.client.sessions import close_session, open_session
from ray_route.client.sync_client import RouteClient
from ray_route.clock import Deadline
from ray_route.controller.making import handles_of, named_pods
from ray_route.errors import InvalidInputError
from ray_route.model import Life, Pod
from ray_route.pod.pod_actor import PodSpec
from ray_route.pod.stopping import Actors
from ray_route.runtime.waiting import run

ASK_S = 30.0
"""How long Redis and the router may take for an answer."""


class Sight:
    """Looks at the pods of one service; changes nothing."""

    def __init__(self, spec: PodSpec) -> None:
        self._namespace = spec.namespace
        self.service = spec.service
        self._url = spec.url

    def named(self) -> dict[int, str]:
        """Return the names of the pods that Ray has, or is restarting, by index."""
        return named_pods(self._namespace, self.service)

    @contextlib.contextmanager
    def client(self, deadline: Deadline) -> Iterator[tuple[Session, RouteClient]]:
        """Provide a client for as long as something is to do: one costs a thread or two."""
        session = open_session(self._namespace, self._url, {}, deadline)
        client = RouteClient(session)
        try:
            yield session, client
        finally:
            close_session(session)

    def pods(self, timeout: float = ASK_S) -> dict[int, Pod]:
        """Return what the pod table says, dead pods included."""
        with self.client(Deadline.after(timeout)) as (_, client):
            return client.pods(self.service, timeout=timeout)

    def counts(self) -> dict[int, int]:
        """Ask the pods that serve how many uids they hold; raise `PodUnavailableError`."""
        deadline = Deadline.after(ASK_S)
        with self.client(deadline) as (session, _):
            counts: dict[int, int] = run(session.namespace.ask("count", self.service), deadline)
            return counts

    def handles(self, indexes: Iterable[int]) -> Actors:
        """Return the handles of those of the pods that Ray has."""
        return handles_of(self._namespace, self.service, indexes)

    def alive(self) -> dict[int, Pod]:
        """Return the pods whose lives have not ended, as the pod table has it."""
        return {index: pod for index, pod in self.pods().items() if pod.life is Life.ALIVE}

    def others(self, indexes: Iterable[int]) -> list[int]:
        """Return the pods that there are but these, the lowest first."""
        return sorted({*self.alive(), *self.named()} - set(indexes))

    def lives_on(self, index: int, pod: Pod) -> bool:
        """True if a pod still lives the life that was found."""
        now = self.pods().get(index)
        if now is None or now.life is not Life.ALIVE:
            return False
        return now.incarnation == pod.incarnation

    def lives_anew(self, index: int, pod: Pod | None) -> bool:
        """True if a pod lives a later life than that which was found, if any was."""
        now = self.pods().get(index)
        if now is None or now.life is not Life.ALIVE:
            return False
        return pod is None or now.incarnation > pod.incarnation

    def known(self, index: int) -> Pod:
        """Return a pod that is there; raise `InvalidInputError`."""
        pods = self.pods()
        if index not in pods:
            raise InvalidInputError(
                argument="pod",
                value=index,
                reason=f"is unknown; service {self.service!r} has pods {sorted(pods)}",
                namespace=self._namespace,
            )
        return pods[index]
