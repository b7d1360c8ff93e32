"""Follows docs/tutorial.md to the letter, with the commands of any environment.

As a program: `python tests/tutorial.py FOLDER`, where the commands of that environment are. It
then starts a Ray of its own, in a folder of its own, and reads nothing of this project's code.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
_BLOCK = re.compile(r'```(\w+)(?: title="([\w.]+)")?\n(.*?)```', re.DOTALL)
_COMMAND_S = 90
_RAY = """
import ray, sys
here = ray.init(num_cpus=4, include_dashboard=False, _temp_dir=sys.argv[1])
print(here.address_info["gcs_address"], flush=True)
input()
"""


def blocks(page: Path = PAGE) -> Iterator[tuple[str, str, str]]:
    """Yield language, title and text of each code block."""
    yield from _BLOCK.findall(page.read_text())


def follow(commands: Path, folder: Path, environment: dict[str, str]) -> list[str]:
    """Do what the page says; return what each command printed, or raise what went wrong."""
    said: list[str] = []
    service: subprocess.Popen[str] | None = None
    try:
        for language, title, text in blocks():
            if language == "python":
                (folder / title).write_text(text)
                continue
            for line in text.splitlines():
                words = line.partition("#")[0].split()
                if words[:2] == ["python", "rooms.py"]:
                    service = _start(commands, folder, environment, words)
                elif words[0] in ("ray-route", "python") and "venv" not in words:
                    said.append(_run(commands, folder, environment, words))
    finally:
        if service is not None:
            service.send_signal(signal.SIGINT)
            service.wait(_COMMAND_S)
            if service.stdout is not None:
                service.stdout.close()
    return said


def _start(
    commands: Path, folder: Path, environment: dict[str, str], words: list[str]
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [commands / words[0], *words[1:]],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "30 rooms are open" in line:
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return process
    raise AssertionError(f"{words} ended with {process.wait()}: {''.join(said)}")


def _run(commands: Path, folder: Path, environment: dict[str, str], words: list[str]) -> str:
    done = subprocess.run(
        [commands / words[0], *words[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_COMMAND_S,
        check=False,
    )
    assert done.returncode == 0, (words, done)
    return done.stdout


def main(commands: Path) -> None:
    """Follow the page on a Ray that nobody else uses."""
    with tempfile.TemporaryDirectory(prefix="rr-", dir="/tmp") as place:
        unset = ("PYTHONPATH", "RAY_ADDRESS", "RAY_ROUTE_REDIS_URL")
        environment = {name: value for name, value in os.environ.items() if name not in unset}
        environment["RAY_TMPDIR"] = place
        starter = commands.absolute() / "python"
        ray_process = subprocess.Popen(
            [starter, "-c", _RAY, place],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert ray_process.stdout is not None
        try:
            address = ray_process.stdout.readline().strip()
            environment |= {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"}
            folder = Path(place) / "work"
            folder.mkdir()
            for text in follow(commands.absolute(), folder, environment):
                print(text)
        finally:
            ray_process.communicate("\n", timeout=_COMMAND_S)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
