"""Interrupts at every line.

Python raises KeyboardInterrupt in the main thread at any line. So does a trace function here: at
the first line of what some work runs in its caller's thread, then at the second, and so on.
"""

from __future__ import annotations

import linecache
import signal
import sys
from collections.abc import Callable, Container
from itertools import count
from types import FrameType
from typing import Any

_CALL_NOTHING = {"return", "return None", "return True", "return False", "raise", "pass"}


class Interrupter:
    """Raises KeyboardInterrupt in this thread at the line of that number in some modules."""

    def __init__(self, at_line: int, modules: tuple[Any, ...], spared: Container[str] = ()) -> None:
        self.at_line = at_line
        self.lines = 0
        self.where = "nowhere"
        # It is kept: CPython calls it once more where an interrupt has just ended the tracing.
        self._trace = self._enter
        self._spared = spared
        self._files = {module.__file__ for module in modules}

    def __enter__(self) -> Interrupter:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, *_: Any) -> Any:
        code = frame.f_code
        is_ours = code.co_filename in self._files and code.co_name not in self._spared
        return self._line if is_ours else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event != "line" or self._is_border(frame):
            return self._line
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            return self._line  # nobody hears of one
        self.lines += 1
        if self.lines == self.at_line:
            sys.settrace(None)
            self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            raise KeyboardInterrupt
        return self._line

    def _is_border(self, frame: FrameType) -> bool:
        """True of a line at the border of a block: between its end and the release of its lock.

        Or before it begins, or what follows if it fails; and of one that calls nothing. Python lets
        no signal in there, but calls its trace function; what that raises on the way out of an
        `except`, some versions of Python take for handled by their thread from then on.
        """
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        return line.startswith(("with ", "try:", "except")) or line in _CALL_NOTHING


def at_every_line(
    work: Callable[[], object],
    check: Callable[[], object],
    *modules: Any,
    stride: int = 1,
    spared: Container[str] = (),
) -> int:
    """Interrupt some work at each of its lines in turn, and check after each; count them.

    With a stride at each so many alone; never in functions whose names are `spared`.
    """
    for number in count(1, stride):
        try:
            with Interrupter(number, modules, spared) as interrupter:
                work()
        except KeyboardInterrupt:
            pass
        if interrupter.lines < number:
            return number
        try:
            check()
        except BaseException:
            print(f"what was interrupted at line {number}, {interrupter.where}")
            raise
    raise AssertionError
