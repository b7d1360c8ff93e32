"""Conversations with an LLM at the trace's own times: how long a prompt waits for its prefill.

A replica computes one prompt after the other, at a stated speed; what it has in its cache takes no
time. All times are those of the trace, which runs faster by a stated factor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from benchmarks.conversation_trace import Prompt, read
from benchmarks.conversations import peers
from benchmarks.harness import Plot, Report, Sample, others_took, wait_for_quiet
from benchmarks.peers import REPLICAS, Peer, PrefixCache, running_serve
from benchmarks.replay import CAPACITY, Replay, at_their_times

QUESTION = "how long prompts wait for their prefill, when they come as they came"
COLUMNS = ("routing", "wait p50, s", "p99, s", "blocks found", "fullest of 4", "failed")
_SPEED_UP = 5  # what the machine itself takes for a prompt counts as so many times as much
_TOKENS_PER_S = 15_000  # of one replica; all prompts need 41,000 without any cache
_MINUTES, _QUICK_MINUTES = 5, 1
_POINTS = 60


def run(*, quick: bool) -> Report:
    """Replay the beginning of the trace once with each peer."""
    minutes = _QUICK_MINUTES if quick else _MINUTES
    prompts = [prompt for prompt in read() if prompt.at_s < minutes * 60]
    report = Report("paced", QUESTION, COLUMNS)
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for peer in peers():
        replay = _replayed(peer, prompts)
        _add(report, peer, replay)
        lines[peer.name] = _tail(replay)
    report.plots["waits"] = Plot(
        f"Prompts that wait longer, {minutes} minutes at {_SPEED_UP} times the speed",
        "seconds of the trace",
        "share of prompts",
        lines,
    )
    return report


def _replayed(peer: Peer, prompts: Sequence[Prompt]) -> Replay:
    others_took.append(wait_for_quiet())
    with running_serve():
        return asyncio.run(_paced(peer, prompts))


async def _paced(peer: Peer, prompts: Sequence[Prompt]) -> Replay:
    speed = _TOKENS_PER_S * _SPEED_UP
    handle = await asyncio.to_thread(peer.deploy, PrefixCache, REPLICAS, CAPACITY, speed)
    await peer.ask(handle, "warm-up")
    return await at_their_times(peer, handle, prompts, _SPEED_UP)


def _add(report: Report, peer: Peer, replay: Replay) -> None:
    p50, p99 = (replay.wait_s(share) * _SPEED_UP for share in (0.5, 0.99))
    report.samples[f"{peer.name}: p50, s"] = Sample([p50])
    report.samples[f"{peer.name}: p99, s"] = Sample([p99])
    report.rows.append(
        (
            peer.name,
            f"{p50:.2f}",
            f"{p99:.1f}",
            f"{replay.share_found():.1%}",
            f"{replay.fullest():.1%}",
            f"{replay.failed}",
        )
    )


def _tail(replay: Replay) -> tuple[list[float], list[float]]:
    """Return waits, and the share of prompts that wait at least as long; on logarithmic steps."""
    waits = sorted((wait * _SPEED_UP for wait in replay.waits_s), reverse=True)
    number = len(waits)
    places = sorted({int(number ** (step / _POINTS)) for step in range(_POINTS + 1)})
    return [waits[place - 1] for place in places], [place / number for place in places]
