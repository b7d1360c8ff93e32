"""What the faults of a run have cost, printed: the figures of the documentation."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from statistics import median

from history import History, recovery_s, waits_s
from states import taken_back


def report(history: History, failures: list[str], wrong: list[str]) -> None:
    """Print a summary, and a line for each kind of fault."""
    relinks = len({(call.uid, call.epoch) for call in history.served}) - len(
        {call.uid for call in history.served}
    )
    kinds = Counter(hook.kind for hook in history.hooks)
    print(f"calls {len(history.acknowledged)}, relinks {relinks}, hooks {dict(kinds)}")
    print(f"wrong {len(wrong)}, failed calls {len(failures)}")
    for line in [*_table(history), *wrong[:50], *failures[:20]]:
        print(line)
    for fault in history.faults if wrong or failures else ():
        print(f"{fault.at:.2f} to {fault.until:.2f}: {fault.kind} of {fault.incarnation}")


def _table(history: History) -> Iterator[str]:
    back: dict[str, list[int]] = defaultdict(list)
    for _, fault, calls in taken_back(history):
        back[fault.kind].append(calls)
    waited = waits_s(history)
    times = Counter(fault.kind for fault in history.faults)
    yield "fault | times | users taken back | by calls | longest wait s | serves again p50, p99 s"
    for kind, number in sorted(times.items()):
        memory = f"{len(back[kind])} | {sum(back[kind])}"
        longest = max(waited.get(kind, [0.0]))
        yield f"{kind} | {number} | {memory} | {longest:.2f} | {spread(recovery_s(history, kind))}"


def spread(waits: list[float]) -> str:
    """Return median and 99th percentile, or a dash."""
    if not waits:
        return "-"
    return f"{median(waits):.2f}, {p99(waits):.2f} of {len(waits)} uids"


def p99(waits: list[float]) -> float:
    """Return the 99th percentile of sorted values, 0 if there are none."""
    return waits[int(len(waits) * 0.99)] if waits else 0.0
