"""Replays the trace of conversations against a deployment whose replicas model a KV cache."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.conversation_trace import TOKENS, Prompt, known_before
from benchmarks.peers import Peer

CAPACITY = 10_000  # blocks in a replica's cache
_CONCURRENT = 16
_ATTEMPTS = 5
_ANSWER_S = 60.0

# What happens when a prompt is reached, by its number.
Events = Mapping[int, Callable[[], Awaitable[Any]]]


@dataclass
class Replay:
    """What came of one peer's run, prompt by prompt."""

    prompts: Sequence[Prompt]
    found: list[int] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    failed: int = 0
    took_s: float = 0.0

    def __post_init__(self) -> None:
        self.found = [0] * len(self.prompts)
        self.replicas = [0] * len(self.prompts)
        self.waits_s = [_ANSWER_S] * len(self.prompts)

    def share_found(self, where: slice = slice(None)) -> float:
        """Return which share of the prompts' blocks was in the cache."""
        return sum(self.found[where]) / sum(len(prompt.blocks) for prompt in self.prompts[where])

    def fullest(self, where: slice = slice(None)) -> float:
        """Return the share of these prompts that the replica with the most of them got."""
        served = Counter(self.replicas[where])
        return max(served.values()) / served.total()

    def computed_again(self) -> int:
        """Count the tokens that had been computed before, somewhere, and were not found."""
        pairs = zip(known_before(self.prompts), self.found, strict=True)
        return sum(max(0, known - found) for known, found in pairs) * TOKENS

    def wait_s(self, share: float) -> float:
        """Return how long such a share of the prompts waited at most."""
        return sorted(self.waits_s)[int(share * (len(self.waits_s) - 1))]


async def many_at_a_time(
    peer: Peer, handle: Any, prompts: Sequence[Prompt], events: Events
) -> Replay:
    """Send prompts in the trace's order, each as soon as one before it is answered."""
    replay, left = Replay(prompts), iter(range(len(prompts)))
    under_way: list[asyncio.Future[Any]] = []

    async def work() -> None:
        for number in left:
            if number in events:
                under_way.append(asyncio.ensure_future(events[number]()))
            await _send(peer, handle, replay, number)

    began = time.monotonic()
    await asyncio.gather(*(work() for _ in range(_CONCURRENT)))
    replay.took_s = time.monotonic() - began
    await asyncio.gather(*under_way)
    return replay


async def at_their_times(
    peer: Peer, handle: Any, prompts: Sequence[Prompt], speed_up: float
) -> Replay:
    """Send each prompt at its own time, from which its wait counts."""
    replay = Replay(prompts)

    async def one(number: int, due: float) -> None:
        await asyncio.sleep(due - time.monotonic())
        await _send(peer, handle, replay, number)
        replay.waits_s[number] = time.monotonic() - due

    began = time.monotonic()
    due = [began + (prompt.at_s - prompts[0].at_s) / speed_up for prompt in prompts]
    await asyncio.gather(*itertools.starmap(one, enumerate(due)))
    replay.took_s = time.monotonic() - began
    return replay


async def _send(peer: Peer, handle: Any, replay: Replay, number: int) -> None:
    """Send one prompt; send it again if its replica dies over it."""
    prompt = replay.prompts[number]
    for _ in range(_ATTEMPTS):
        try:
            call = peer.of(handle, prompt.conversation).prefill.remote(prompt)
            answer = await asyncio.wait_for(_answer(call), _ANSWER_S)
        except Exception:  # noqa: BLE001 - counted
            replay.failed += 1
        else:
            replay.found[number], replay.replicas[number] = answer
            return


async def _answer(call: Any) -> Any:
    return await call
