"""Whether an actor that was made runs yet; why it does not, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
import ray._private.state as ray_state

ALIVE = "ALIVE"
DEAD = "DEAD"
WAITING = frozenset({"DEPENDENCIES_UNREADY", "PENDING_CREATION", "RESTARTING"})
"""States in which no process of an actor has begun: none has, or Ray is making its next one."""

_UNITS = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}


def state_of(handle: Any) -> str:
    """Return the state of an actor, in Ray's own words; empty: Ray's head does not know it.

    Asks the head. Raises `RayError` if that can't be asked, as by way of `ray://`.
    """
    known = _known(handle)
    return str(known["State"]) if known else ""


def _known(handle: Any) -> dict[str, Any]:
    found: dict[str, Any] = ray_state.actors(handle._actor_id.hex())  # noqa: SLF001 - Ray has no public way
    return found


def why_not_running(handle: Any, options: Mapping[str, Any]) -> str:
    """Return what an actor waits for, given the options that it was made with."""
    asked = resources_of(options)
    try:
        known = _known(handle)
    except ray.exceptions.RayError:  # by way of `ray://` that is told to nobody
        return _no_node_has(asked) or "it does not run, and Ray does not tell this process why"
    if not known:
        return "Ray does not know it"
    if known["Address"]["Port"]:
        return f"its __init__ runs in process {known['Pid']}" if known["Pid"] else "it starts"
    return f"it is not scheduled: {_no_node_has(asked) or _what_is_taken(asked)}"


def resources_of(options: Mapping[str, Any]) -> dict[str, float]:
    """Return the resources that an actor with these options takes."""
    asked = {unit: options.get(name) or 0 for name, unit in _UNITS.items()}
    asked.update(options.get("resources") or {})
    return {unit: float(amount) for unit, amount in asked.items() if amount}


def _no_node_has(asked: Mapping[str, float]) -> str:
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    if any(_has(there, asked) for there in nodes.values()):
        return ""
    most = {unit: max((n.get(unit, 0) for n in nodes.values()), default=0) for unit in asked}
    return (
        f"no node has {_listed(asked)} (the most that one has: {_listed(most)}); add such a node, "
        "or ask for less by ray_actor_options"
    )


def _what_is_taken(asked: Mapping[str, float]) -> str:
    wanted = _listed(asked)
    free = ray_state.available_resources_per_node()
    if not any(_has(there, asked) for there in free.values()):
        most = {unit: max((n.get(unit, 0) for n in free.values()), default=0) for unit in asked}
        return (
            f"no node has {wanted} free (the most that one has free: {_listed(most)}); end what "
            "takes it, add a node, or ask for less by ray_actor_options"
        )
    return f"{wanted or 'no resources'} asked for; Ray has not placed it yet"


def _has(there: Mapping[str, float], asked: Mapping[str, float]) -> bool:
    return all(there.get(unit, 0) >= amount for unit, amount in asked.items())


def _listed(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{unit} {amount:g}" for unit, amount in sorted(amounts.items()))
