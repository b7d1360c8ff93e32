"""What was sent to shards and is not answered: a server that is replaced takes it along.

A primary that was replaced keeps to itself what it did last. What it did and told is missed by its
counter (`counters`); of what it did and could not tell nobody knows. So nothing is written to a
shard whose answer was lost before a look has begun: that finds out whose server it is. If it is
still the one that was sent to, its counter, which is remembered then, tells what it did, or it did
nothing; if it is another, the shard is recovered, since it may lack what the first one did.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ray_route.clock import Clock, now

# A server that stalls may carry out late what it has received: its sender's tries and time-outs.
CARRIED_OUT_S = 10.0

Homes = Mapping[int, str]
"""The identity of each shard's server."""


@dataclass(slots=True, eq=False)
class Sending:
    """Some scripts on their way to a shard, of which `home` is the server as it was looked at."""

    shard: int
    home: str | None
    lost_at: float = math.inf
    """When it was known that no answer comes."""
    looked: bool = False

    @property
    def is_in_doubt(self) -> bool:
        """True until a look has begun after its answer was lost."""
        return self.lost_at < math.inf and not self.looked


class Sendings:
    """All on their way, or whose answers were lost lately. `clock` is injected by tests."""

    def __init__(self, clock: Clock = now) -> None:
        self._clock = clock
        self._sent: defaultdict[int, list[Sending]] = defaultdict(list)
        self._homes: dict[int, str] = {}

    def is_in_doubt(self, shard: int, since: float = -math.inf) -> bool:
        """True if an answer of a shard was lost, `since` then, and no look has begun after that."""
        sent = self._sent.get(shard, ())
        return any(sending.is_in_doubt and sending.lost_at >= since for sending in sent)

    def begin(self, shard: int) -> Sending:
        """Note that something is sent to a shard from now on; `answered` or `lost` must follow."""
        sending = Sending(shard, self._homes.get(shard))
        self._sent[shard].append(sending)
        return sending

    def answered(self, sending: Sending) -> None:
        """Take in that its server has answered, or that nothing was sent."""
        if sending in (sent := self._sent[sending.shard]):
            sent.remove(sending)

    def lost(self, sending: Sending) -> None:
        """Take in that its server may have carried it out, and nobody hears of that."""
        sending.lost_at = self._clock()

    def moved_to(self, homes: Homes) -> list[int]:
        """Take in whose servers are who; return the shards that another one may have written to.

        Of what was sent there nobody asks any more.
        """
        moved = [
            shard
            for shard, sent in self._sent.items()
            if shard in homes and any(sending.home != homes[shard] for sending in sent)
        ]
        for shard in moved:
            del self._sent[shard]
        self._homes.update(homes)
        return moved

    def looked(self, shards: Iterable[int], began: float) -> None:
        """Take in that the counters of some shards were read, in a look that began then."""
        for shard in shards:
            for sending in list(self._sent.get(shard, ())):
                if sending.lost_at < began:
                    sending.looked = True
                if sending.lost_at + CARRIED_OUT_S < began:
                    self.answered(sending)
