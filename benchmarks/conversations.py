"""Conversations with an LLM, replayed: how much of each prompt its replica still has in its cache.

Each replica is a model of a KV cache: an LRU of 512-token prefix blocks. At one third of the
trace a replica is added, at two thirds one is killed.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
from collections.abc import Iterator, Sequence

from benchmarks.conversation_trace import Prompt, known_before, read
from benchmarks.harness import Plot, Report, Sample, others_took, wait_for_quiet
from benchmarks.peers import BY_PREFIX, PEERS, REPLICAS, Peer, PrefixCache, running_serve
from benchmarks.replay import CAPACITY, Replay, many_at_a_time

QUESTION = "prefix blocks found in the replica's cache, over one hour of conversations"
COLUMNS = (
    "routing",
    "blocks found",
    "against the best",
    "tokens computed again",
    "fullest of 4",
    "failed",
    "prompts/s",
)
_WINDOW = 500
_QUICK = 2_000


def run(*, quick: bool) -> Report:
    """Replay the trace once with each peer."""
    prompts = read()[: _QUICK if quick else None]
    report = Report("conversations", QUESTION, COLUMNS)
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for peer in peers():
        replay = replayed(peer, prompts)
        add(report, peer, replay)
        lines[peer.name] = _curve(replay)
    sticky = report.samples["sticky: blocks found"]
    for other in ("power of two", "consistent hash"):
        ratio = sticky.over(report.samples[f"{other}: blocks found"])
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


def peers() -> Iterator[Peer]:
    """Give all peers, and say which there is not with this Ray."""
    yield from PEERS
    module, _, _ = str(BY_PREFIX.router).rpartition(".")
    try:
        importlib.import_module(module)
    except ImportError as error:
        print(f"{BY_PREFIX.name}: not importable: {error}")
    else:
        yield BY_PREFIX


def replayed(peer: Peer, prompts: Sequence[Prompt]) -> Replay:
    """Replay the trace on a Serve of its own."""
    others_took.append(wait_for_quiet())
    with running_serve():
        return asyncio.run(_with_events(peer, prompts))


async def _with_events(peer: Peer, prompts: Sequence[Prompt]) -> Replay:
    handle = await asyncio.to_thread(peer.deploy, PrefixCache, REPLICAS, CAPACITY)
    await peer.ask(handle, "warm-up")

    async def grow() -> None:
        await asyncio.to_thread(peer.deploy, PrefixCache, REPLICAS + 1, CAPACITY)

    async def kill() -> None:
        _, pid = await peer.ask(handle, "whoever")
        os.kill(pid, signal.SIGKILL)

    events = {len(prompts) // 3: grow, len(prompts) * 2 // 3: kill}
    return await many_at_a_time(peer, handle, prompts, events)


def add(report: Report, peer: Peer, replay: Replay) -> None:
    """Add a peer's row."""
    before_events = slice(len(replay.prompts) // 3)
    share, again = replay.share_found(), replay.computed_again()
    report.samples[f"{peer.name}: blocks found"] = Sample([share])
    report.samples[f"{peer.name}: tokens computed again"] = Sample([float(again)])
    report.rows.append(
        (
            peer.name,
            f"{share:.1%}",
            f"{sum(replay.found) / sum(known_before(replay.prompts)):.0%}",
            f"{again / 1e6:.1f} M",
            f"{replay.fullest(before_events):.1%}",
            f"{replay.failed}",
            f"{len(replay.prompts) / replay.took_s:.0f}",
        )
    )


def _curve(replay: Replay) -> tuple[list[float], list[float]]:
    ends = range(_WINDOW, len(replay.prompts) + 1, _WINDOW // 5)
    shares = [replay.share_found(slice(end - _WINDOW, end)) for end in ends]
    return [float(end) for end in ends], shares
