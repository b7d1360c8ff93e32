"""What is noted of links when they are written: how many a pod has, and why they came or went."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from ray_route.model import Link
from ray_route.router.decisions import Decisions
from ray_route.router.membership import Membership
from ray_route.router.removals import Removals
from ray_route.router.shards import Outcome
from ray_route.runtime.metrics import LINKS, Meter


class LinkNotes:
    """Counts links as they come to pods and leave them, and notes why they do."""

    def __init__(
        self, membership: Membership, decisions: Decisions, removals: Removals, meter: Meter
    ) -> None:
        self._table = membership.table
        self._loads = membership.loads
        self._decisions = decisions
        self._removals = removals
        self._meter = meter

    def take_in(
        self, service: str, uid: str, outcome: Outcome, decision: str, source: int | None = None
    ) -> Link:
        """Return the link that holds; if this call wrote it, count it and remember why."""
        assert outcome.link is not None
        if outcome.written:
            sources = None if source is None else {uid: source}
            self.came(service, {uid: outcome.link}, decision, sources)
        return outcome.link

    def came(
        self,
        service: str,
        written: Mapping[str, Link],
        decision: str,
        sources: Mapping[str, int] | None = None,
    ) -> None:
        """Count links that were just written, and remember why they were."""
        self._removals.forget(service, written)
        epochs: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for link in written.values():
            epochs[link.pod, link.incarnation].append(link.epoch)
        for (pod, incarnation), placed in epochs.items():
            record = self._table.get(service, pod)
            if record is not None and record.incarnation == incarnation:
                self._loads.placed(service, record, placed)
        self._decisions.note(service, written, decision, sources)
        self._meter.count(LINKS, service, decision.partition(" ")[0], by=len(written))

    def left(self, service: str, held: Link | None) -> None:
        """Count a link less at the pod that had it."""
        if held is not None:
            self._loads.left(service, held.pod, held.incarnation, held.epoch)

    def removed(self, service: str, uid: str, held: Link, outcome: Outcome, after_s: float) -> None:
        """Take in what became of a link that was to go, now or in so many seconds."""
        self.left(service, held if outcome.written and not after_s else None)
        if outcome.written or outcome.link is None:
            self._removals.add(service, uid, held, after_s)
        if outcome.written:
            when = f" in {after_s:g} s" if after_s else ""
            self._decisions.note(service, {uid: held}, f"removed{when}", {uid: held.pod})
            self._meter.count(LINKS, service, "removed")
