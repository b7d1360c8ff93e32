"""Follows docs/tutorial.md to the letter, with the commands of any environment.

As a program: `python tests/tutorial.py FOLDER`, where the commands of that environment are. In two
plain shells with nothing set: `rooms.py` runs in one, all else in the other. It reads nothing of
this project's code.
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

from alone import ALONE, plain, why_not

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
_BLOCK = re.compile(r'```(\w+)(?: title="([\w.]+)")?\n(.*?)```', re.DOTALL)
_COMMAND_S = 90
_INSIDE = "TUTORIAL_IS_ALONE"
_SAID = (
    "READY",
    "placed: pod",
    "2 texts in the room:\n- hello\n- anybody here?\n",
    "pod 0 of rooms is drained: 10 uids moved",
    "SHUTDOWN",
    "3 texts in the room:\n- hello\n- anybody here?\n- anybody here?\n",
    "texts in the room: 1",
)
_EPOCHS = r"pod \d+, epoch (\d+), then pod \d+, epoch (\d+)"


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


def check(text: str) -> None:
    """Raise where the commands have not printed what the page says that they print."""
    missing = [said for said in _SAID if said not in text]
    assert not missing, (missing, text)
    before, after = (int(epoch) for epoch in re.findall(_EPOCHS, text)[0])
    assert before < after, text


def main(commands: Path) -> None:
    """Follow the page, alone where that can be."""
    problem = None if _INSIDE in os.environ else why_not()
    if _INSIDE not in os.environ and problem is None:
        again = [*ALONE, sys.executable, __file__, str(commands)]
        sys.exit(subprocess.run(again, env={**os.environ, _INSIDE: "1"}, check=False).returncode)
    if problem:
        print(f"Beside all Rays of this machine ({problem})")
    with tempfile.TemporaryDirectory(prefix="rr-") as folder:
        environment = {name: value for name, value in plain().items() if name != _INSIDE}
        text = "\n".join(follow(commands.absolute(), Path(folder), environment))
    print(text)
    check(text)


if __name__ == "__main__":
    # A shell's background job is deaf to Ctrl-C, and so would be the service that gets one here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(Path(sys.argv[1]))
