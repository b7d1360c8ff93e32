"""An interrupt that comes while a command is written for Redis is an interrupt, and no more.

hiredis has Python write numbers, which looks for interrupts, and does not expect one: its process
ends by a segmentation fault.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from ray_route.store.scripts import plain_call, script_call

PACKS_UNDER_INTERRUPTS = """
import random, signal, time
import hiredis
from ray_route.store.scripts import plain_call, script_call

def interrupt(*_):
    raise KeyboardInterrupt

calls = [script_call("remove", ["key"], [7, 1.5, b"b", "s"]), plain_call("EXPIRE", "key", 7)]
signal.signal(signal.SIGALRM, interrupt)
ends, interrupts = time.monotonic() + 1.0, 0
while time.monotonic() < ends:
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(5e-6, 3e-4))
        while True:
            for call in calls:
                hiredis.pack_command(call.words)
    except KeyboardInterrupt:
        interrupts += 1
print(interrupts)
"""


@pytest.mark.slow
def test_an_interrupt_while_commands_are_written_ends_no_process() -> None:
    packing = [sys.executable, "-c", PACKS_UNDER_INTERRUPTS]
    done = subprocess.run(packing, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def test_numbers_are_words_as_redis_reads_them() -> None:
    assert script_call("remove", ["a", "b"], [7, 1.5, b"b", "s"]).words[2:] == (
        *("2", "a", "b"),
        *("7", "1.5", b"b", "s"),
    )
    assert plain_call("EXPIRE", "a", 7).words == ("EXPIRE", "a", "7")
    assert script_call("remove", ["a", "b"], [7]).keys == ("a", "b")
