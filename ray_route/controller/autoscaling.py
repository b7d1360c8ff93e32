"""Scales a service by its load: looks at its pods, judges, and makes or leaves some."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from ray_route.client.base import DRAIN_S
from ray_route.clock import now
from ray_route.controller.doing import Steps, StoppedError
from ray_route.controller.sizing import Judge, Seen, Verdict
from ray_route.controller.upkeep import Upkeep
from ray_route.controller.wishes import Wishes
from ray_route.model import Life, Pod, RoutingState
from ray_route.policies import Autoscale, Autoscaling
from ray_route.runtime.waiting import Check
from ray_route.store.wanted import Wanted

# A pod that has not come to serve by then is waited for, and no more are made.
_STUCK_S = 120.0
# While a pod is drained: whether it is needed again after all.
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class _Look:
    """What is known at one look; see `Autoscaler.steps`."""

    wanted: Wanted
    policy: Autoscale
    failed: Collection[int]
    check: Check


class Autoscaler:
    """Scales one service; who calls holds its controller's turn, but to see how it is scaled.

    A pod that is left is not wanted any more first, and then drained and ended. Whatever stops that
    is an error of `steps`: what is there is to be wanted again then.
    """

    def __init__(self, upkeep: Upkeep, wishes: Wishes) -> None:
        self._upkeep = upkeep
        self._wishes = wishes
        self._judge = Judge()
        self._absent: dict[int, float] = {}
        """Since when wanted pods have not served."""
        self._verdict = Verdict(0, "the controller has not looked yet")
        self._checked_at = 0.0

    def told(self) -> Autoscaling | None:
        """Say how the service is scaled just now; None: by whoever asks for that."""
        wanted = self._wishes.wanted
        policy = wanted.autoscale if wanted else None
        if policy is None:
            return None
        return Autoscaling(policy, self._verdict.desired, self._verdict.why)

    def forget(self) -> None:
        """Judge anew: nobody has looked for a while, or what was judged could not be done."""
        self._judge.forget()

    def steps(self, failed: Collection[int], check: Check) -> Steps:
        """Bring the service to what its load needs, at most one pod less at a time.

        `failed` are the pods that have failed to start; `check` raises what ends a drain.
        """
        wanted = self._wishes.wanted
        assert wanted is not None
        policy = wanted.autoscale
        assert policy is not None
        pods = self._upkeep.pods()
        wanted = yield from self._with_all_there(wanted, pods)
        look = _Look(wanted, policy, failed, check)
        drained = [index for index in wanted.indexes if _is_drained(pods.get(index))]
        if drained:
            yield from self._leave(look, drained[0], "it was drained", look.check)
            return
        verdict = self._judged(look, pods)
        if verdict.more:
            yield f"want {verdict.more} more pods: {verdict.why}"
            self._wishes.write(wanted.scaled(wanted.replicas + verdict.more))
        elif verdict.leave is not None:
            check = partial(self._check, look, verdict.leave)
            yield from self._leave(look, verdict.leave, verdict.why, check)

    def _with_all_there(
        self, wanted: Wanted, pods: Mapping[int, Pod]
    ) -> Generator[str, None, Wanted]:
        """Want pods, too, that an earlier life has left half-way."""
        alive = {index for index, pod in pods.items() if pod.life is Life.ALIVE}
        strays = (alive & self._upkeep.named().keys()) - set(wanted.indexes)
        strays = {index for index in strays if index >= wanted.first}
        if strays:
            yield f"want pods {sorted(strays)}, which are there"
            wanted = wanted.of({*wanted.indexes, *strays})
            self._wishes.write(wanted)
        return wanted

    def _judged(self, look: _Look, pods: Mapping[int, Pod], leaving: int | None = None) -> Verdict:
        wanted = look.wanted
        loads = self._loads(look.policy, pods)
        closed = [pod for pod in wanted.indexes if _is_closed(pods.get(pod), pod in wanted.cordons)]
        seen = Seen(
            loads={pod: loads.get(pod, 0.0) for pod in wanted.indexes if pod not in closed},
            closed=len(closed),
            leaving=loads.get(leaving, 0.0) if leaving is not None else 0.0,
            stuck=self._stuck(look, pods),
        )
        self._verdict = self._judge.judge(look.policy, seen)
        return self._verdict

    def _loads(self, policy: Autoscale, pods: Mapping[int, Pod]) -> Mapping[int, float]:
        if policy.target_load is None:
            return self._upkeep.counts()
        return {index: pod.load for index, pod in pods.items() if pod.life is Life.ALIVE}

    def _stuck(self, look: _Look, pods: Mapping[int, Pod]) -> set[int]:
        alive = {index for index, pod in pods.items() if pod.life is Life.ALIVE}
        absent = set(look.wanted.indexes) - alive
        self._absent = {index: self._absent.get(index, now()) for index in absent}
        late = {index for index, since in self._absent.items() if now() - since > _STUCK_S}
        return late | (absent & set(look.failed))

    def _leave(self, look: _Look, index: int, why: str, check: Check) -> Steps:
        yield f"leave pod {index}: {why}"
        self._wishes.write(_without(look.wanted, index))
        yield from self._upkeep.end(index, DRAIN_S, check)

    def _check(self, before: _Look, leaving: int) -> None:
        """Raise what ends the drain of a pod: that it, or another one, is needed after all."""
        before.check()
        if now() < self._checked_at + _LOOK_S:
            return
        self._checked_at = now()
        look = replace(before, wanted=_without(before.wanted, leaving))
        verdict = self._judged(look, self._upkeep.pods(), leaving)
        if verdict.more:
            raise StoppedError(f"pod {leaving} is needed again: {verdict.why}")


def _without(wanted: Wanted, index: int) -> Wanted:
    """Want all pods but one; where that is the only one, the next in its place."""
    return wanted.of(set(wanted.indexes) - {index} or {index + 1})


def _is_drained(pod: Pod | None) -> bool:
    return pod is not None and pod.life is Life.ALIVE and pod.state is RoutingState.SHUTDOWN


def _is_closed(pod: Pod | None, is_cordoned: bool) -> bool:  # noqa: FBT001 - it is no option
    """True if a pod takes no new uids; one that is still to come does, unless it is cordoned."""
    denies = pod is not None and pod.life is Life.ALIVE and pod.state is not RoutingState.READY
    return is_cordoned or denies
