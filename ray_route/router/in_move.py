"""Which uids are just being moved: each by one at a time, and nobody gives it back meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from ray_route.clock import Deadline

_LOOK_S = 0.02


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class InMove:
    """The uids of one router that somebody moves. Belongs to one event loop."""

    def __init__(self) -> None:
        self._turns: dict[tuple[str, str], _Turn] = {}
        self._moving: Counter[tuple[str, str]] = Counter()

    def __contains__(self, key: object) -> bool:
        """Say whether a (service, uid) is being moved."""
        return key in self._moving

    @asynccontextmanager
    async def turn(self, service: str, uid: str, deadline: Deadline) -> AsyncIterator[None]:
        """Let nobody else move the uid meanwhile."""
        key = (service, uid)
        turn = self._turns.setdefault(key, _Turn())
        turn.users += 1
        try:
            try:
                await asyncio.wait_for(turn.lock.acquire(), deadline.remaining())
            except asyncio.TimeoutError:
                raise deadline.passed(f"other moves of uid {uid!r} of {service!r}") from None
            try:
                with self.marked([key]):
                    yield
            finally:
                turn.lock.release()
        finally:
            turn.users -= 1
            if turn.users == 0:
                self._turns.pop(key, None)

    def has_turn(self, service: str, uid: str) -> bool:
        """True if somebody moves this very uid, or waits for that."""
        return (service, uid) in self._turns

    @contextmanager
    def marked(self, keys: Iterable[tuple[str, str]]) -> Iterator[None]:
        """Have uids left alone meanwhile by who would give them back."""
        some = list(keys)
        self._moving.update(some)
        try:
            yield
        finally:
            self.unmark(some)

    def mark(self, key: tuple[str, str]) -> None:
        """Have a uid left alone until `unmark`."""
        self._moving[key] += 1

    def unmark(self, keys: Iterable[tuple[str, str]]) -> None:
        """Take `mark` back for each."""
        for key in keys:
            self._moving[key] -= 1
            if self._moving[key] <= 0:
                del self._moving[key]

    async def stand_still(self, service: str, uids: Iterable[str], within_s: float) -> None:
        """Wait until none of some uids is being moved, for so many seconds at most."""
        if not self._moving:
            return
        deadline, keys = Deadline.after(within_s), [(service, uid) for uid in uids]
        while deadline.remaining() and any(key in self._moving for key in keys):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
