"""The examples run as they stand, each in a process of its own, and find what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from helpers import end_router

from ray_route.store.embedded import free_port

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
FINDS = {
    "chat_rooms": ["200 texts were said; the last in room-0: 'eve: bye'"],
    "agents": ["10 agents moved; they know 5 to 5 texts each"],
    "dataset_by_pod": ["2000 purchases on 3 pods", "9000 spent, 1 pod per user"],
    "sessions_on_serve": ["heard 3 times each, 0 wandered, [20, 20, 20] a replica", "person 7"],
    "llm_chats": ["30 of 30 conversations stayed; of 270 messages in their prompts 90 were new"],
}
NAMESPACES = {
    "chat_rooms": "chat-example",
    "agents": "agents-example",
    "dataset_by_pod": "data-example",
    "sessions_on_serve": "sessions-example",
    "llm_chats": "llm-example",
}


@pytest.mark.parametrize("name", FINDS)
def test_example(name: str, ray_session: None) -> None:
    if name == "dataset_by_pod":
        pytest.importorskip("pyarrow", reason="Ray Data's version here needs Python 3.11")
    address = ray.get_runtime_context().gcs_address
    port = [str(free_port())] if name == "llm_chats" else []  # its own may be somebody else's
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *port],
        env={**os.environ, "RAY_ADDRESS": address, "RAY_DATA_DISABLE_PROGRESS_BARS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for line in FINDS[name]:
        assert line in done.stdout, done.stdout + done.stderr[-2000:]
    end_router(NAMESPACES[name])


def test_each_says_how_to_run_it() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert f"python examples/{path.name}" in path.read_text(), path
