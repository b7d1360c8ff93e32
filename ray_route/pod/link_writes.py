"""What a pod asks the router to do with links: set, take and remove them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray_route.clock import Deadline, shorter
from ray_route.errors import InvalidInputError
from ray_route.model import Link, check_pod, check_uid
from ray_route.runtime.waiting import Operation, run


class LinkWrites:
    """Asks by `ask`, as one pod of a service; `own` returns that pod's index."""

    def __init__(
        self, service: str, ask: Callable[..., Operation[Any]], own: Callable[[], int]
    ) -> None:
        self._service = service
        self._ask = ask
        self._own = own

    def set(self, uid: str, pod: int | None, timeout: float, *, persistent: bool) -> Link:
        """See `PodAgent.set_linked_pod`."""
        link: Link = self._run(
            "set_link", timeout, uid, self._target(uid, pod), persistent=persistent
        )
        return link

    def try_set(
        self, uid: str, pod: int | None, timeout: float, *, persistent: bool, steal: bool
    ) -> tuple[bool, Link]:
        """See `PodAgent.try_set_linked_pod`."""
        target = self._target(uid, pod)
        outcome: tuple[bool, Link] = self._run(
            "try_set_link", timeout, uid, target, persistent=persistent, steal=steal
        )
        return outcome

    def remove(self, uid: str, pod: int | None, timeout: float, *, after_s: float) -> bool:
        """See `PodAgent.remove_linked_pod`; `pod` is the only one that it is removed from."""
        check_uid(uid)
        if isinstance(after_s, bool) or not isinstance(after_s, (int, float)) or not after_s >= 0:
            raise InvalidInputError(
                argument="after_s", value=after_s, reason="must be a number of seconds from 0 on"
            )
        removed: bool = self._run("remove_link", timeout, uid, pod, after_s=after_s)
        return removed

    def _run(self, method: str, timeout: float, *args: Any, **kwargs: Any) -> Any:
        asked = self._ask(method, self._service, *args, timeout_s=shorter(timeout), **kwargs)
        return run(asked, Deadline.after(timeout))

    def _target(self, uid: str, pod: int | None) -> int:
        check_uid(uid)
        return self._own() if pod is None else check_pod(pod)
