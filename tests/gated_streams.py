"""Users' classes whose streams begin when a file is there, in a module for Ray's workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from ray_route.pod import readers


class Gate:
    """One object for all uids of a pod, or for one uid."""

    def __init__(self, uid: str = "") -> None:
        self.uid = uid

    def hurry(self) -> None:
        """Have this pod close what nobody reads after a second."""
        readers.LEFT_S = 1.0

    def say(self, text: str) -> str:
        return text

    def items(self, folder: str, number: int) -> Iterator[int]:
        (Path(folder) / "begun").touch()
        while not (Path(folder) / "go").exists():
            time.sleep(0.02)
        try:
            yield from range(number)
        finally:
            (Path(folder) / "closed").touch()

    def count(self, number: int) -> Iterator[int]:
        yield from range(number)


class AsyncGate:
    """The same with coroutines."""

    async def hurry(self) -> None:
        readers.LEFT_S = 1.0

    async def say(self, text: str) -> str:
        return text

    async def items(self, folder: str, number: int) -> AsyncIterator[int]:
        (Path(folder) / "begun").touch()
        while not (Path(folder) / "go").exists():  # noqa: ASYNC110 - a test's signal
            await asyncio.sleep(0.02)
        try:
            for item in range(number):
                yield item
        finally:
            (Path(folder) / "closed").touch()

    async def count(self, number: int) -> AsyncIterator[int]:
        for item in range(number):
            yield item
