"""Sessions by every way into Ray Serve: which are sticky, and where strays are noticed.

The table of docs/serve.md. Each way needs a Ray of its own environment; `make serve-ingresses`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
REQUESTS = 48
STICKY = {"split": 0, "seen": 12, "200": REQUESTS, "is_home True": REQUESTS}


def outcomes(kind: str, *apps: str) -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, str(HERE.parent / "ingresses.py"), kind, *apps],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def test_haproxy_that_splits_sessions_is_noticed_and_forwarding_keeps_them() -> None:
    seen = outcomes("haproxy_by_one_who_does_not_know", "serve", "forward")
    assert seen["serve strays"]["bypassed served"] > 0
    assert seen["serve"]["200"] == REQUESTS
    assert seen["forward"] == STICKY
    assert seen["forward strays"]["bypassed forwarded"] > 0


@pytest.mark.long
def test_haproxy_that_splits_sessions_and_refusal() -> None:
    seen = outcomes("haproxy_by_one_who_does_not_know", "inner", "refuse")
    assert seen["inner"] == STICKY
    assert seen["refuse"]["split"] == 0
    assert seen["refuse"]["409"] == REQUESTS - seen["refuse"]["is_home True"] > 0


@pytest.mark.long
def test_haproxy_keeps_sessions_of_inner_deployments_and_by_an_ingress_request_router() -> None:
    seen = outcomes("haproxy")
    assert (seen["inner"], seen["inner strays"]) == (STICKY, {})
    assert seen["picked"]["split"] == 0


@pytest.mark.long
def test_serves_own_proxy_keeps_all() -> None:
    seen = outcomes("proxy")
    for name in ("inner", "serve", "refuse", "forward", "grpc"):
        assert (seen[name], seen[f"{name} strays"]) == (STICKY, {}), name


@pytest.mark.long
@pytest.mark.parametrize("kind", ["direct", "fast"])
def test_by_serves_proxy_all_are_kept_and_past_it_strays_are_noticed(kind: str) -> None:
    seen = outcomes(kind)
    for name in ("inner", "serve", "refuse", "forward"):
        assert seen[name] == STICKY, name
    assert seen["serve strays"]["bypassed served"] > 0
    refused = seen["refuse past the proxy"]["409"]
    assert seen["refuse strays"]["bypassed refused"] >= refused > 0  # with those that tried the way
    assert seen["forward past the proxy"] == STICKY
