"""The hooks of users' code that run in this process, so that none waits for a call of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ray_route.errors import PodUnavailableError
from ray_route.protocol.calls import Chain


class RunningHook(NamedTuple):
    """A hook, and for whom it runs."""

    name: str
    uid: str
    namespace: str = ""
    service: str = ""
    pod: int | None = None


_running: dict[int, RunningHook] = {}


@contextmanager
def running(number: int, hook: RunningHook) -> Iterator[None]:
    """Have a hook known by its number, which is in the chain of all calls that it makes."""
    _running[number] = hook
    try:
        yield
    finally:
        del _running[number]


def check_not_awaited(chain: Chain, namespace: str, service: str, uid: str) -> None:
    """Raise `PodUnavailableError` for a call by a hook of its own uid, which would wait for it."""
    for number in chain:
        hook = _running.get(number)
        if hook and (hook.namespace, hook.service, hook.uid) == (namespace, service, uid):
            what = f"{hook.name}({uid!r})"
            raise PodUnavailableError(
                reason=f"{what} runs, and this call of its own would wait for its end",
                may_have_run=False,
                namespace=namespace,
                service=service,
                pod=hook.pod,
                uid=uid,
            )
