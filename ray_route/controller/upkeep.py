"""What a controller does to the pods of its service: makes, drains, closes and ends them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable
from typing import Any

from ray_route.clock import Deadline
from ray_route.controller.doing import Steps
from ray_route.controller.draining import drain, is_draining, stop_drain
from ray_route.controller.recipe import Recipe
from ray_route.controller.recipes import Recipes
from ray_route.controller.sight import ASK_S, Sight
from ray_route.errors import PodUnavailableError
from ray_route.model import DrainProgress, Life, Pod, RoutingState
from ray_route.pod.starting import wait_ready
from ray_route.pod.stopping import GRACE_S, Actors, stop
from ray_route.protocol.names import controller_name
from ray_route.runtime.waiting import Check, no_check, run

_NO_USERS_GRACE_S = 1.0


class Upkeep(Sight):
    """The pods of one service. What takes several steps yields each before it is taken.

    Any step may be the last: the next life of a controller begins anew, and finds what is there.
    """

    def __init__(self, recipe: Recipe, held: list[Any], actor: str) -> None:
        self._actor = actor
        super().__init__(recipe.spec)
        name = controller_name(self._namespace, self.service)
        self.recipes = Recipes(recipe, held, name)

    def make(self, indexes: Iterable[int], recipe: str, deadline: Deadline) -> Actors:
        """Make pods that Ray does not have, by a recipe; return the handles of all of them."""
        missing = sorted(set(indexes) - self.named().keys())
        if missing:
            self.recipes.make(recipe, missing, self._actor, deadline)
        return self.handles(indexes)

    def grow(
        self,
        indexes: Iterable[int],
        recipe: str,
        made: Actors,
        deadline: Deadline,
        check: Check = no_check,
    ) -> Steps:
        """Make what is missing of these pods, and wait until they serve.

        Those that were drained before are made anew. What this makes is noted in `made`; what Ray
        is just restarting is waited for.
        """
        alive = self.alive()
        drained = {index for index in alive if alive[index].state is RoutingState.SHUTDOWN}
        yield from self._end_drained(drained & set(indexes), alive)
        missing = sorted(set(indexes) - (alive.keys() - drained))
        if missing:
            yield from self._make_and_wait(missing, recipe, made, deadline, check)

    def renew(self, index: int, recipe: str, made: Actors, deadline: Deadline) -> Steps:
        """Make a drained pod anew."""
        yield from self._end_drained([index], self.pods())
        yield from self._make_and_wait([index], recipe, made, deadline, no_check)

    def _end_drained(self, drained: Iterable[int], pods: dict[int, Pod]) -> Steps:
        for index in sorted(drained):
            yield from self.end_drained(index, pods[index])

    @staticmethod
    def end_drained(index: int, pod: Pod) -> Steps:
        """End a pod that was drained, as it was found; a later life of it is spared."""
        yield f"end drained pod {index}"
        stop([pod.actor], incarnation=pod.incarnation)

    def _make_and_wait(
        self, indexes: list[int], recipe: str, made: Actors, deadline: Deadline, check: Check
    ) -> Steps:
        yield f"make pods {indexes}"
        before = self.named()
        try:
            found = self.make(indexes, recipe, deadline)
        finally:
            new = set(indexes) - before.keys()
            made.update(self.handles(new))
        yield f"wait for pods {indexes}"
        what = f"pods {indexes} of service {self.service!r}"
        wait_ready(found, what, deadline, self.recipes.of(recipe).options, check)
        # The router must know them before anyone places a uid on the strength of this.
        with self.client(deadline) as (session, _):
            run(session.refresh(self.service), deadline)

    def shrink(self, indexes: Iterable[int], deadline_s: float, check: Callable[[], None]) -> Steps:
        """Drain and end all pods but these, the highest first; see `end`."""
        for index in reversed(self.others(indexes)):
            yield from self.end(index, deadline_s, check)

    def end(
        self,
        index: int,
        deadline_s: float,
        check: Callable[[], None],
        note: Callable[[DrainProgress], None] = lambda _: None,
    ) -> Steps:
        """Drain a pod and end it; `note` is told how far that has come.

        `check` is called before it is ended, and raises if nothing is to be ended any more.
        Raises `PodUnavailableError` if it can't be drained within `deadline_s` seconds.
        """
        yield f"drain pod {index}"
        while not (yield from self._end(index, deadline_s, check, note)):
            yield f"drain pod {index}, which has begun another life"

    def _end(
        self,
        index: int,
        deadline_s: float,
        check: Callable[[], None],
        note: Callable[[DrainProgress], None],
    ) -> Generator[str, None, bool]:
        """Drain a pod and end it; False if it has begun another life, which may have users.

        Or if its life has ended in the drain: then there is no user to be moved.
        """
        pod = self.pods().get(index)
        if pod is not None and pod.life is Life.ALIVE:
            try:
                self._drain(index, deadline_s, check, note)
            except PodUnavailableError:
                if self.lives_on(index, pod):
                    raise
                return False
        yield f"end pod {index}"
        check()
        return self._stop(index, pod)

    def _stop(self, index: int, pod: Pod | None) -> bool:
        """End a pod, as it was found; False if it has begun another life, however late."""
        serves = pod is not None and pod.life is Life.ALIVE
        actor = pod.actor if pod is not None else self.named().get(index)
        return stop(
            [actor] if actor else [],
            GRACE_S if serves else _NO_USERS_GRACE_S,
            incarnation=pod.incarnation if pod is not None else 0,
            spared=lambda: self.lives_anew(index, pod),
        )

    def undo(self, made: Actors, deadline_s: float) -> None:
        """End pods that were made in vain: those that serve after their uids have moved.

        One that can't be drained in time stays.
        """
        for pod in made:
            with contextlib.suppress(PodUnavailableError):
                for _ in self.end(pod, deadline_s, no_check):
                    pass

    def _drain(
        self,
        index: int,
        deadline_s: float,
        check: Callable[[], None],
        note: Callable[[DrainProgress], None],
    ) -> None:
        def tell(progress: DrainProgress) -> None:
            note(progress)
            check()

        with self.client(Deadline.after(ASK_S)) as (_, client):
            drain(client, self.service, index, deadline_s, tell)

    def reopen(self, indexes: Iterable[int]) -> Steps:
        """Have those of the pods that are closed take new uids again."""
        yield from self._set(indexes, RoutingState.DENY_NEW, RoutingState.READY)

    def stop_drains(self, indexes: Iterable[int]) -> Steps:
        """Stop the drains of those of the pods that are being drained."""
        with self.client(Deadline.after(ASK_S)) as (session, _):
            for index in sorted(indexes):
                if is_draining(session, self.service, index):
                    yield f"stop the drain of pod {index}"
                    stop_drain(session, self.service, index)

    def close(self, indexes: Iterable[int]) -> Steps:
        """Close those of the pods to new uids that take some."""
        yield from self._set(indexes, RoutingState.READY, RoutingState.DENY_NEW)

    def open(self, index: int) -> Steps:
        """Have a closed pod take new uids again; raise `PodUnavailableError` in its drain."""
        with self.client(Deadline.after(ASK_S)) as (session, _):
            drained = is_draining(session, self.service, index)
        if drained:
            raise PodUnavailableError(
                reason="it is being drained",
                may_have_run=False,
                namespace=self._namespace,
                service=self.service,
                pod=index,
            )
        yield from self._set([index], RoutingState.DENY_NEW, RoutingState.READY)

    def _set(self, indexes: Iterable[int], found: RoutingState, to: RoutingState) -> Steps:
        pods = self.pods()
        for index in sorted(indexes):
            pod = pods.get(index)
            if pod is not None and pod.life is Life.ALIVE and pod.state is found:
                yield f"make pod {index} {to.value}"
                deadline = Deadline.after(ASK_S)
                with self.client(deadline) as (session, _):
                    address = (self.service, index, pod.incarnation)
                    try:
                        run(session.namespace.ask("set_state", *address, to), deadline)
                    except PodUnavailableError:
                        if self.lives_on(index, pod):
                            raise
