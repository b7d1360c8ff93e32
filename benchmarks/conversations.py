"""Conversations with an LLM, replayed: how much of each prompt its replica still has in its cache.

Each replica is a model of a KV cache: an LRU of 512-token prefix blocks. At one third of the
trace a replica is added, at two thirds one is killed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.harness import Plot, Report, Sample, others_took, wait_for_quiet
from benchmarks.peers import PEERS, REPLICAS, Peer, PrefixCache, running_serve

QUESTION = "prefix blocks found in the replica's cache, over one hour of conversations"
TRACE = Path(__file__).parents[2] / "shared" / "data" / "conversation_trace.jsonl"
CAPACITY = 10_000
_TOKENS = 512
_CONCURRENT = 16
_WINDOW = 500
_ATTEMPTS = 5
_ANSWER_S = 60.0


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request of the trace."""

    conversation: str
    blocks: list[int]
    tokens: int


@dataclass
class Replay:
    """What came of one peer's run, prompt by prompt."""

    found: list[int]
    failed: int = 0
    took_s: float = 0.0


def run(*, quick: bool) -> Report:
    """Replay the trace once with each peer."""
    prompts = _read(quick=quick)
    columns = ("routing", "blocks found", "tokens computed again", "against the best", "failed")
    report = Report("conversations", QUESTION, (*columns, "prompts/s"))
    possible = _best(prompts)
    lines: dict[str, tuple[list[float], list[float]]] = {}
    shares: dict[str, float] = {}
    for peer in PEERS:
        others_took.append(wait_for_quiet())
        with running_serve():
            replay = asyncio.run(_replay(peer, prompts))
        shares[peer.name] = _add(report, peer, prompts, replay, possible)
        lines[peer.name] = _curve(prompts, replay.found)
    for other in ("power of two", "consistent hash"):
        ratio = Sample([shares["sticky"] / shares[other]])
        report.aim(f"blocks found, against {other} (times)", "at least", 1.0, ratio)
    report.plots["hits"] = Plot(
        f"Prefix blocks found in the cache, of the last {_WINDOW} prompts",
        "prompts",
        "share of blocks",
        lines,
        linear=True,
        events={"4 → 5": len(prompts) / 3, "one is killed": len(prompts) * 2 / 3},
    )
    return report


def _read(*, quick: bool) -> list[Prompt]:
    """Read the trace; the second block of a prompt names its conversation."""
    if not TRACE.exists():
        raise click.ClickException(f"the trace is not at {TRACE}")
    rows = [json.loads(line) for line in TRACE.read_text().splitlines()]
    prompts = [Prompt(str(r["hash_ids"][1]), r["hash_ids"], r["input_length"]) for r in rows]
    return prompts[:2_000] if quick else prompts


def _best(prompts: Sequence[Prompt]) -> int:
    """Count the blocks that one cache without bounds would find."""
    seen: set[int] = set()
    total = 0
    for prompt in prompts:
        total += sum(1 for _ in itertools.takewhile(seen.__contains__, prompt.blocks))
        seen.update(prompt.blocks)
    return total


async def _replay(peer: Peer, prompts: Sequence[Prompt]) -> Replay:
    """Send prompts in the trace's order, so many at a time, with the events on the way."""
    handle = await asyncio.to_thread(peer.deploy, PrefixCache, REPLICAS, CAPACITY)
    await peer.ask(handle, "warm-up")
    replay = Replay([0] * len(prompts))
    left = iter(enumerate(prompts))
    events = {
        len(prompts) // 3: asyncio.to_thread(peer.deploy, PrefixCache, REPLICAS + 1, CAPACITY),
        len(prompts) * 2 // 3: _kill(peer, handle),
    }
    under_way: list[asyncio.Task[Any]] = []

    async def work() -> None:
        for number, prompt in left:
            if number in events:
                under_way.append(asyncio.create_task(events[number]))
            await _send(peer, handle, prompt, number, replay)

    began = time.monotonic()
    await asyncio.gather(*(work() for _ in range(_CONCURRENT)))
    replay.took_s = time.monotonic() - began
    await asyncio.gather(*under_way)
    return replay


async def _send(peer: Peer, handle: Any, prompt: Prompt, number: int, replay: Replay) -> None:
    """Send one prompt; send it again if its replica dies over it."""
    for _ in range(_ATTEMPTS):
        try:
            call = peer.of(handle, prompt.conversation).prefill.remote(prompt.blocks)
            replay.found[number], _pid = await asyncio.wait_for(_answer(call), _ANSWER_S)
        except Exception:  # noqa: BLE001 - counted
            replay.failed += 1
        else:
            return


async def _answer(call: Any) -> Any:
    return await call


async def _kill(peer: Peer, handle: Any) -> None:
    _, pid = await peer.ask(handle, "whoever")
    os.kill(pid, signal.SIGKILL)


def _add(
    report: Report, peer: Peer, prompts: Sequence[Prompt], replay: Replay, possible: int
) -> float:
    blocks = sum(len(prompt.blocks) for prompt in prompts)
    found = sum(replay.found)
    again = _again(prompts, replay.found)
    for what, value in (("blocks found", found / blocks), ("tokens computed", float(again))):
        report.samples[f"{peer.name}: {what}"] = Sample([value])
    share, rate = found / blocks, len(prompts) / replay.took_s
    report.rows.append(
        (
            peer.name,
            f"{share:.1%}",
            f"{again / 1e6:.1f} M",
            f"{found / possible:.0%}",
            f"{replay.failed}",
            f"{rate:.0f}",
        )
    )
    return share


def _again(prompts: Sequence[Prompt], found: Sequence[int]) -> int:
    """Count the tokens that had been computed before, somewhere, and were not found."""
    seen: set[int] = set()
    again = 0
    for prompt, hits in zip(prompts, found, strict=True):
        known = sum(1 for _ in itertools.takewhile(seen.__contains__, prompt.blocks))
        again += max(0, known - hits) * _TOKENS
        seen.update(prompt.blocks)
    return again


def _curve(prompts: Sequence[Prompt], found: Sequence[int]) -> tuple[list[float], list[float]]:
    def points() -> Iterator[tuple[float, float]]:
        for end in range(_WINDOW, len(prompts) + 1, _WINDOW // 5):
            window = slice(end - _WINDOW, end)
            blocks = sum(len(prompt.blocks) for prompt in prompts[window])
            yield float(end), sum(found[window]) / blocks

    xs, ys = zip(*points(), strict=True)
    return list(xs), list(ys)
