"""One hour of real conversations with an LLM, anonymised: prompts as prefix blocks of 512 tokens.

In a module of its own, so that Serve's replicas can import it.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

TOKENS = 512  # in a block
_TRACE = Path(__file__).parents[2] / "shared" / "data" / "conversation_trace.jsonl"
_SYSTEM_BLOCKS = 1  # all prompts begin with this one
_SCATTER = 2_654_435_761  # odd: a bijection of 32 bits, after which numbers have no common digits


@dataclass(frozen=True)
class Prompt:
    """One request of the trace."""

    conversation: str
    blocks: list[int]
    at_s: float

    @property
    def prompt(self) -> str:
        """The blocks as text, a word for each, for a router that compares texts."""
        return "".join(f"{block * _SCATTER % (1 << 32):08x}" for block in self.blocks)


def read() -> list[Prompt]:
    """Read the trace in order; the second block of a prompt names its conversation."""
    if not _TRACE.exists():
        raise click.ClickException(f"the trace is not at {_TRACE}")
    rows = [json.loads(line) for line in _TRACE.read_text().splitlines()]
    times = list(_spread([row["timestamp"] / 1_000 for row in rows]))
    return [
        Prompt(str(row["hash_ids"][_SYSTEM_BLOCKS]), row["hash_ids"], at_s)
        for row, at_s in zip(rows, times, strict=True)
    ]


def _spread(stamps: Sequence[float]) -> Iterator[float]:
    """Spread what bears one stamp evenly over the time until the next: stamps are 3 s apart."""
    at_once = Counter(stamps)
    starts = sorted(at_once)
    step = {start: end - start for start, end in itertools.pairwise(starts)}
    for start in starts:
        number = at_once[start]
        yield from (start + step.get(start, 0.0) * place / number for place in range(number))


def branched(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Name a conversation for each branch: `group/branch`, where the group has the second block.

    A prompt goes on with the longest earlier one of its group whose whole blocks it has, or else
    begins a branch.
    """
    last: dict[str, list[list[int]]] = defaultdict(list)
    named = []
    for prompt in prompts:
        branches = last[prompt.conversation]
        branch = _continued(branches, prompt.blocks)
        if branch is None:
            branch = len(branches)
            branches.append(prompt.blocks)
        branches[branch] = prompt.blocks
        named.append(replace(prompt, conversation=f"{prompt.conversation}/{branch}"))
    return named


def _continued(branches: Sequence[list[int]], blocks: list[int]) -> int | None:
    fitting = [
        (len(earlier), number)
        for number, earlier in enumerate(branches)
        if _goes_on_with(blocks, earlier)
    ]
    return max(fitting)[1] if fitting else None


def _goes_on_with(blocks: list[int], earlier: list[int]) -> bool:
    """Tell whether an earlier prompt is all there; its last block may have been part of one."""
    whole = earlier[:-1]
    if blocks[: len(earlier)] == earlier:
        return True
    return len(whole) > _SYSTEM_BLOCKS and blocks[: len(whole)] == whole != blocks


def known_before(prompts: Sequence[Prompt]) -> list[int]:
    """Count the leading blocks of each prompt that one cache without bounds would find."""
    seen: set[int] = set()
    known = []
    for prompt in prompts:
        known.append(sum(1 for _ in itertools.takewhile(seen.__contains__, prompt.blocks)))
        seen.update(prompt.blocks)
    return known
