"""Run as a program: `ray-route bench` on a cluster of three nodes, as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ray.cluster_utils import Cluster


def main(*words: str) -> int:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    command = Path(sys.executable).with_name("ray-route")
    try:
        at = {**os.environ, "RAY_ADDRESS": cluster.address}
        return subprocess.run([command, "bench", *words], env=at, check=False).returncode
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
