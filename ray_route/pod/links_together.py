"""The links of many uids, read at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import NamedTuple, Protocol, TypeVar

from ray_route.clock import now
from ray_route.model import Link
from ray_route.pod.holdings import Holdings
from ray_route.pod.surroundings import Surroundings
from ray_route.runtime.link_reads import Part, Readings

# Others wait for a read that is under way: so many uids are 5 ms of a server's time.
TOGETHER = 500


class Asking(NamedTuple):
    """What held when links were asked for: answers count for that alone."""

    term: int
    pod: int
    incarnation: int
    at: float

    def is_named_by(self, link: Link, epoch: int) -> bool:
        """True if a link is this pod's, under that epoch."""
        mine = (self.pod, self.incarnation, epoch)
        return (link.pod, link.incarnation, link.epoch) == mine


class HasUid(Protocol):
    """Whatever is to be known of a uid's link."""

    @property
    def uid(self) -> str:
        """The uid."""


T = TypeVar("T", bound=HasUid)
TakeIn = Callable[[T, object, Asking], None]
"""Takes in what was read of a uid: its link, or what else there is, or None: nothing is known."""


def asking(held: Holdings) -> Asking:
    """Note what holds now."""
    return Asking(held.term, held.pod, held.lease.incarnation, now())


def read_together(
    namespace: Surroundings,
    service: str,
    held: Holdings,
    some: Sequence[T],
    take_in: TakeIn[T],
) -> None:
    """Read links, so many at a time that no others wait for all of them.

    `take_in` is called in the thread that reads, whoever waits for that: it must not wait.
    """
    for start in range(0, len(some), TOGETHER):
        _read(namespace, service, held, some[start : start + TOGETHER], take_in)


def _read(
    namespace: Surroundings,
    service: str,
    held: Holdings,
    some: Sequence[T],
    take_in: TakeIn[T],
) -> None:
    by_shard: defaultdict[int, list[T]] = defaultdict(list)
    for asked in some:
        by_shard[namespace.keys.shard(asked.uid)].append(asked)
    parts = [
        Part(shard, [(service, asked.uid) for asked in of_shard])
        for shard, of_shard in by_shard.items()
    ]
    groups, began = list(by_shard.values()), asking(held)

    def take_all(readings: Future[Readings]) -> None:
        for asked, link in _links(groups, readings):
            take_in(asked, link, began)

    namespace.reads.ask(parts).add_done_callback(take_all)


def _links(groups: Sequence[list[T]], readings: Future[Readings]) -> Iterator[tuple[T, object]]:
    """Pair what was asked of each shard with its links; with None, if that was not answered."""
    answers: Readings = [None] * len(groups) if readings.exception() else readings.result()
    for group, answer in zip(groups, answers, strict=True):
        is_told = answer is not None and not isinstance(answer, Exception)
        good = is_told and answer.reply.status == "ok"  # type: ignore[union-attr]
        links: Sequence[object] = answer.reply.links if good else [None] * len(group)  # type: ignore[union-attr]
        yield from zip(group, links, strict=True)
