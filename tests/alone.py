"""A program as in a plain shell of a machine on which nobody else has a Ray. Needs no packages.

Elsewhere on this machine others run their Rays. So a program gets namespaces of its own: it sees
no processes but its own, and nothing that `ray start` has left behind.
"""

from __future__ import annotations

import os
import subprocess

_OURS = ("RAY_", "PYTHONPATH", "PYTHONWARNINGS", "TMPDIR")
_USER = [] if os.geteuid() == 0 else ["--map-root-user"]
# A shell comes first there: whoever is process 1 is deaf to signals and collects the dead.
ALONE = [
    *("unshare", *_USER, "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"),
    *("sh", "-c", 'mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && "$@"; exit $?', "sh"),
]


def why_not() -> str | None:
    """Say why no program can be alone here; None: it can."""
    try:
        tried = subprocess.run([*ALONE, "true"], capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return None if tried.returncode == 0 else f"no namespaces of one's own: {tried.stderr.strip()}"


def plain() -> dict[str, str]:
    """Return the environment of a shell in which nothing is set for Ray or ray_route."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
