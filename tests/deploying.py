"""Drivers of their own, which deploy and leave or are killed; and recipes of what is deployed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ray

from ray_route.clock import Deadline
from ray_route.controller.recipe import Recipe
from ray_route.pod.arguments import pack
from ray_route.pod.options import PodOptions
from ray_route.pod.pod_actor import PodSpec
from ray_route.pod.user_threads import AT_ONCE


def driver(code: str, namespace: str, **names: Any) -> subprocess.Popen[str]:
    """Start a driver that runs `code` on this Ray, with `ray_route`, `services` and these names."""
    given = {"namespace": namespace, **names}
    text = f"import ray_route, services\nglobals().update({given!r})\n{code}"
    here = Path(__file__).parent
    return subprocess.Popen(
        [sys.executable, "-c", text],
        env={
            **os.environ,
            "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
            "PYTHONPATH": str(here),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def drive(code: str, namespace: str, **names: Any) -> Any:
    """Run such a driver to its end; return what it printed last, from JSON."""
    out, err = driver(code, namespace, **names).communicate(timeout=250)
    assert out, err
    return json.loads(out.splitlines()[-1])


def recipe_of(cls: type, client: Any, service: str, *args: Any) -> Recipe:
    """Return the recipe of a class, as `deploy` makes it without options."""
    how = PodOptions(
        cpu_factor=0.0,
        grace_s=20.0,
        exit_when_fenced=False,
        release_s=None,
        on_unpicklable="keep",
        per_uid=False,
        turns=False,
        idle_s=None,
        threads=AT_ONCE,
        save_every_s=10.0,
    )
    where = {"namespace": client.namespace, "service": service, "pod": -1, "actor": ""}
    url = client._session.namespace.url
    spec = PodSpec(**where, url=url, how=how, on_loop=False, one_by_one=True)
    init, _ = pack(args, {}, None, Deadline.after(9))
    return Recipe.of(cls, init, {"num_cpus": 0}, spec)
