"""The hooks of a user's class, as a pod runs them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray_route.errors import NestedCallError, RouteError
from ray_route.pod.agent import PodAgent
from ray_route.pod.endings import EXITS
from ray_route.pod.hooks import Hook
from ray_route.pod.leaving import leaving
from ray_route.pod.turns import turn_number
from ray_route.runtime.call_context import in_chain
from ray_route.runtime.running_hooks import RunningHook, running


class UserHooks:
    """Finds the hooks of an object; what they raise for the process ends that in order.

    Calls that a hook makes carry its number, so that one which comes back to its uid, and would
    wait for the hook itself, is known.
    """

    def __init__(self, agent: Callable[[], PodAgent | None]) -> None:
        self._agent = agent

    def find(self, owner: Any, name: str, *, on_loop: bool) -> Hook | None:
        """Return a hook; None if the object has none of that name."""
        hook = getattr(owner, name, None)
        if hook is None:
            return None

        def here(uid: str, *state: Any) -> Any:
            with self._noticed(uid, name):
                return hook(uid, *state)

        async def there(uid: str, *state: Any) -> Any:
            with self._noticed(uid, name):
                done = hook(uid, *state)
                return await done if inspect.isawaitable(done) else done

        return there if on_loop else here

    @contextmanager
    def _noticed(self, uid: str, name: str) -> Iterator[None]:
        number, hook = turn_number(), RunningHook(name, uid, **_ids(self._agent()))
        with running(number, hook), in_chain((number,)), self._errors(uid, name):
            yield

    @contextmanager
    def _errors(self, uid: str, name: str) -> Iterator[None]:
        agent = self._agent()
        try:
            yield
        except EXITS as error:
            if agent is None:
                raise
            raise leaving(agent, uid, name, error, may_have_run=False) from error
        except RouteError as error:  # of a call of its own: no word on the call that waits for it
            raise NestedCallError(method=name, error=error, uid=uid, **_ids(agent)) from error


def _ids(agent: PodAgent | None) -> dict[str, Any]:
    if agent is None:
        return {}
    return {"namespace": agent.namespace, "service": agent.service, "pod": agent.pod}
