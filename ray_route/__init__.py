"""ray_route: sticky routing for Ray.

A request for user 42 always reaches the actor that holds user 42.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ray_route._version import __version__
from ray_route.errors import (
    CallCancelledError,
    ClosedError,
    ConfigError,
    DamagedKeyError,
    FencedError,
    InvalidInputError,
    LostWritesError,
    NestedCallError,
    NoAvailablePodError,
    PartialBatchError,
    PodRestartingError,
    PodStartError,
    PodUnavailableError,
    RayGoneError,
    RayUnavailableError,
    RouteError,
    RouterUnavailableError,
    RouteTimeoutError,
    StateNotMovedError,
    StoreUnavailableError,
    UnknownMethodError,
    UnpicklableError,
    UnsafeStoreError,
    UpgradeError,
)
from ray_route.model import (
    DrainProgress,
    Explanation,
    Life,
    Link,
    LinkedPods,
    Pod,
    Rebalance,
    RoutingState,
    ServiceStatus,
    UidMove,
    UpgradeProgress,
)
from ray_route.policies import Autoscale, Autoscaling

if TYPE_CHECKING:
    from ray_route.client.async_client import AsyncRouteClient
    from ray_route.client.connect import connect, connect_async
    from ray_route.client.handles import MethodHandle, ServiceHandle, StreamMethodHandle, UidHandle
    from ray_route.client.responses import Response
    from ray_route.client.streams import ResponseStream
    from ray_route.client.sync_client import RouteClient
    from ray_route.config import RouteConfig
    from ray_route.deploying import deploy, get_deployment
    from ray_route.deployment import Deployment
    from ray_route.pod.agent import PodAgent
    from ray_route.pod.current_link import CurrentLink, current_link
    from ray_route.pod.instances import StateStore
    from ray_route.pod.methods import interleave
    from ray_route.pod.pod_actor import current_agent
    from ray_route.runtime.call_context import current_chain, in_chain

# What does something is loaded when it is first asked for, each from its home: a process that
# connects needs half of it, a pod the other, and a class that `interleave` marks neither.
_HOMES = {
    "AsyncRouteClient": "client.async_client",
    "CurrentLink": "pod.current_link",
    "Deployment": "deployment",
    "MethodHandle": "client.handles",
    "PodAgent": "pod.agent",
    "Response": "client.responses",
    "ResponseStream": "client.streams",
    "RouteClient": "client.sync_client",
    "RouteConfig": "config",
    "ServiceHandle": "client.handles",
    "StateStore": "pod.instances",
    "StreamMethodHandle": "client.handles",
    "UidHandle": "client.handles",
    "connect": "client.connect",
    "connect_async": "client.connect",
    "current_agent": "pod.pod_actor",
    "current_chain": "runtime.call_context",
    "current_link": "pod.current_link",
    "deploy": "deploying",
    "get_deployment": "deploying",
    "in_chain": "runtime.call_context",
    "interleave": "pod.methods",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = found  # asked for once
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


__all__ = [
    "AsyncRouteClient",
    "Autoscale",
    "Autoscaling",
    "CallCancelledError",
    "ClosedError",
    "ConfigError",
    "CurrentLink",
    "DamagedKeyError",
    "Deployment",
    "DrainProgress",
    "Explanation",
    "FencedError",
    "InvalidInputError",
    "Life",
    "Link",
    "LinkedPods",
    "LostWritesError",
    "MethodHandle",
    "NestedCallError",
    "NoAvailablePodError",
    "PartialBatchError",
    "Pod",
    "PodAgent",
    "PodRestartingError",
    "PodStartError",
    "PodUnavailableError",
    "RayGoneError",
    "RayUnavailableError",
    "Rebalance",
    "Response",
    "ResponseStream",
    "RouteClient",
    "RouteConfig",
    "RouteError",
    "RouteTimeoutError",
    "RouterUnavailableError",
    "RoutingState",
    "ServiceHandle",
    "ServiceStatus",
    "StateNotMovedError",
    "StateStore",
    "StoreUnavailableError",
    "StreamMethodHandle",
    "UidHandle",
    "UidMove",
    "UnknownMethodError",
    "UnpicklableError",
    "UnsafeStoreError",
    "UpgradeError",
    "UpgradeProgress",
    "__version__",
    "connect",
    "connect_async",
    "current_agent",
    "current_chain",
    "current_link",
    "deploy",
    "get_deployment",
    "in_chain",
    "interleave",
]
