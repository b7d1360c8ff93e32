"""Which process is meant, and whether it has ended."""

from __future__ import annotations

import subprocess
import sys

from helpers import eventually

from ray_route.runtime.process_ids import has_ended, identify, identify_away


def test_a_process_has_ended_once_it_has() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = identify(process.pid)
    assert not has_ended(name)
    process.kill()
    eventually(lambda: has_ended(name), "a zombie has ended")
    process.wait()
    assert has_ended(name)


def test_another_process_under_the_same_pid_is_not_it() -> None:
    pid, start, random = identify().split("-")
    assert has_ended(f"{pid}-{int(start) - 1}-{random}")


def test_one_that_nobody_can_look_up_is_never_said_to_have_ended() -> None:
    assert not has_ended(identify_away())
    assert identify_away() != identify_away()


RENAMED = """
import ctypes
ctypes.CDLL(None).prctl(15, b") Z \\xff\\xfe", 0, 0, 0)  # PR_SET_NAME
print("done", flush=True)
input()
"""


def test_any_name_that_a_process_gives_itself_is_read() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", RENAMED], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        assert not has_ended(identify(process.pid))
        process.kill()
