"""Conversations that share a prefix: placed each by itself, or by groups, on one replica.

As `conversations`, but each branch of the trace is a conversation of its own: the trace does not
say whose a prompt is. A group is what has the second block in common. Of 8,071 conversations 1,115
are in a group with others, and 1,527 of 12,031 prompts are theirs.
"""

from __future__ import annotations

from benchmarks.conversation_trace import branched, read
from benchmarks.conversations import COLUMNS, add, replayed
from benchmarks.harness import Report
from benchmarks.peers import BY_GROUP, PEERS

QUESTION = "prefix blocks found where conversations that share some are placed together"
_QUICK = 2_000


def run(*, quick: bool) -> Report:
    """Replay the trace with the two placements."""
    prompts = branched(read())[: _QUICK if quick else None]
    report = Report("prefix_groups", QUESTION, COLUMNS)
    (sticky,) = (peer for peer in PEERS if peer.name == "sticky")
    for peer in (sticky, BY_GROUP):
        add(report, peer, replayed(peer, prompts))
    found, alone = (report.samples[f"{peer.name}: blocks found"] for peer in (BY_GROUP, sticky))
    report.aim("blocks found, by group against alone (times)", "at least", 1.0, found.over(alone))
    return report
