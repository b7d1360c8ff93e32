"""The names of Ray actors, in one place: routers, controllers, pods, the embedded server."""

from __future__ import annotations

RAY_NAMESPACE = "ray_route"
"""The Ray namespace that all of them are in."""

EMBEDDED_SERVER = "ray_route:store"

_ROUTER = "router"
_CONTROLLER = "controller"
_RECIPE = "recipe"


def router_name(namespace: str) -> str:
    """Return the name of a namespace's router."""
    return f"ray_route:{namespace}:{_ROUTER}"


def pod_name(namespace: str, service: str, pod: int) -> str:
    """Return the name of a deployed pod."""
    return f"ray_route:{namespace}:{service}:{pod}"


def controller_name(namespace: str, service: str) -> str:
    """Return the name of a deployed service's controller."""
    return f"ray_route:{namespace}:{service}:{_CONTROLLER}"


def recipe_name(namespace: str, service: str, request: str) -> str:
    """Return the name of the actor that holds the recipe which came with a request."""
    return f"ray_route:{namespace}:{service}:{_RECIPE}-{request}"


def is_recipe_of(namespace: str, service: str, name: str) -> bool:
    """Say whether this is the name of the holder of a recipe of a service."""
    return name.startswith(recipe_name(namespace, service, ""))


def namespace_of_router(name: str) -> str | None:
    """Return the namespace whose router has this name; None if it is no router's."""
    parts = name.split(":")
    return parts[1] if len(parts) == 3 and parts[2] == _ROUTER else None


def is_pod_of(namespace: str, name: str) -> bool:
    """Say whether this is the name of a deployed pod of a namespace."""
    parts = name.split(":")
    return len(parts) == 4 and parts[:2] == ["ray_route", namespace] and parts[3].isdigit()


def index_of(namespace: str, service: str, name: str) -> int | None:
    """Return the index of the pod of a service that has this name; None if it is none's."""
    is_pod = is_pod_of(namespace, name) and name.split(":")[2] == service
    return int(name.rpartition(":")[2]) if is_pod else None
