"""How a pod serves: its hooks, turns and threads, of a user's class as it is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray_route.pod import fenced_calls, streams, turn_calls
from ray_route.pod.agent import PodAgent
from ray_route.pod.call_order import ArrivalOrder, CallOrder
from ray_route.pod.exports import export_methods
from ray_route.pod.hooks import Hook, Hooks, takes_state
from ray_route.pod.instances import Instances, OneForAll
from ray_route.pod.leaving import leaving
from ray_route.pod.methods import is_async
from ray_route.pod.options import PodOptions
from ray_route.pod.saver import Saver
from ray_route.pod.turn_calls import TurnCalls
from ray_route.pod.user_threads import UserThreads

Target = Instances | OneForAll
FindHook = Callable[..., Hook | None]
"""Called with an object, a hook's name and `on_loop`; see `UserHooks.find`."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How one pod serves its calls; `on_loop` and `one_by_one` as of `PodSpec`."""

    how: PodOptions
    on_loop: bool
    one_by_one: bool

    def begin(self, pod: Any, target: Target, find: FindHook) -> Hooks:
        """Prepare a pod for its calls; return the hooks of its code, which run as its calls do."""
        turn = None if self.how.has_turns else self._serves_by_arrival(pod)
        owner = target if isinstance(target, Instances) else pod
        found = partial(find, owner, on_loop=self.on_loop)
        return Hooks(
            found("on_acquire"),
            found("on_release"),
            found("on_lost"),
            turn=turn,
            loop=asyncio.get_running_loop() if self.on_loop else None,
            release_s=self.how.release_s,
            carries=takes_state(getattr(owner, "on_acquire", None)),
            prepare=owner.prepare if isinstance(owner, Instances) else lambda _, state: state,
            drops_unpicklable=self.how.on_unpicklable == "drop",
            idle_s=self.how.idle_s,
        )

    def _serves_by_arrival(self, pod: Any) -> Any:
        """Prepare a pod whose uids have no turns; return the lock that its calls take, if any."""
        runs_in_order = self.one_by_one and not self.on_loop  # as Ray does
        pod._ray_route_turn = threading.RLock() if self.one_by_one else nullcontext()
        pod._ray_route_order = ArrivalOrder() if runs_in_order else CallOrder()
        return pod._ray_route_turn if runs_in_order else None

    def take_turns(self, pod: Any, target: Target, agent: PodAgent) -> None:
        """Have each uid's calls run one at a time, if that is wanted; states are saved as well."""
        if not self.how.has_turns:
            return
        threads = None if self.on_loop else UserThreads(self.how.threads)
        calls = pod._ray_route_turns = TurnCalls(agent, target, threads)
        if isinstance(target, Instances):
            target.on_exit = partial(leaving, agent, may_have_run=True)
        if isinstance(target, Instances) and target.store is not None:
            target.epoch_of = partial(_epoch_of, agent)
            saver = Saver(calls, target, self.how.save_every_s)
            pod._ray_route_saver = asyncio.get_running_loop().create_task(saver.run())


def _epoch_of(agent: PodAgent, uid: str) -> int:
    return agent.gate.held.entries[uid].epoch


def methods_of_calls(cls: type, *, turns: bool) -> dict[str, Any]:
    """Return the methods by which pods of a class are called, and asked for states."""
    exports = export_methods(on_loop=turns or is_async(cls))
    if turns:
        return {**exports, **turn_calls.METHODS}
    if is_async(cls):
        methods = {**fenced_calls.ASYNC_METHODS, "_ray_route_stream": streams.stream_async}
    else:
        methods = {**fenced_calls.METHODS, "_ray_route_stream": streams.stream}
    return {**exports, **methods}
