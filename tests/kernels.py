"""A notebook's kernel, and what its user does: run cells, press the stop button."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any

import pytest
from helpers import eventually

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own
    from jupyter_client.manager import KernelManager

CELL_S = 100.0
# Python may come to raise it where nobody hears of it, as in a finalizer; then one presses again.
AGAIN_S = 10.0
_MESSAGE_S = 0.2


class CellError(Exception):
    """What a cell raised: its type's name, and what it said."""

    def __init__(self, name: str, said: str) -> None:
        super().__init__(f"{name}: {said}")
        self.name = name


class Kernel:
    """A running kernel of IPython."""

    def __init__(self, manager: Any, client: Any) -> None:
        self._manager = manager
        self._client = client

    def run(self, code: str, interrupt_at: str = "") -> str:
        """Run a cell; return what it has printed and shown, or raise `CellError`.

        With `interrupt_at` the stop button is pressed once the cell has printed that.
        """
        cell = self._client.execute(code, stop_on_error=False)
        shown, raised, end = "", None, time.monotonic() + CELL_S
        pressed_at = -math.inf
        while time.monotonic() < end:
            message = self._message(cell)
            kind, content = message.get("msg_type"), message.get("content", {})
            if kind == "error":
                raised = CellError(content["ename"], content["evalue"])
            if kind == "status" and content["execution_state"] == "idle":
                break
            shown += content.get("text", "") + str(content.get("data", ""))
            if interrupt_at and interrupt_at in shown and time.monotonic() > pressed_at + AGAIN_S:
                self._manager.interrupt_kernel()
                pressed_at = time.monotonic()
        else:
            raise AssertionError(f"a cell has not ended within {CELL_S} s; it has shown {shown!r}")
        if raised is not None:
            raise raised
        return shown

    def _message(self, cell: str) -> dict[str, Any]:
        try:
            message: dict[str, Any] = self._client.get_iopub_msg(timeout=_MESSAGE_S)
        except Empty:
            return {}
        return message if message["parent_header"].get("msg_id") == cell else {}

    def stopped(self, code: str, at: str) -> None:
        """Run a cell and press the stop button; it must end by that."""
        with pytest.raises(CellError) as stopped:
            self.run(code, interrupt_at=at)
        assert stopped.value.name == "KeyboardInterrupt", stopped.value


@contextmanager
def kernel(environment: dict[str, str]) -> Iterator[Kernel]:
    """Start a kernel, of this Python."""
    manager: Any = KernelManager()
    manager.start_kernel(env=environment)
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=CELL_S)
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        eventually(lambda: not manager.is_alive(), "the kernel has ended")
