"""Shards that a router sets aside: whatever was away for long is among them, whenever it looked."""

from __future__ import annotations

import random

import pytest

from ray_route.config import RouteConfig
from ray_route.router.set_aside import SetAside

CONFIG = RouteConfig(pod_lease_s=10.0, heartbeat_s=1.0)
LIMIT_S = 8.0
SHARDS = 3


class Servers:
    """Servers that come and go at any time; a look sees each at a moment of its own."""

    def __init__(self, choose: random.Random) -> None:
        self.choose = choose
        self.now = 100.0
        self.away_since: dict[int, float] = {}
        self.met: set[int] = set()
        self.longest = dict.fromkeys(range(SHARDS), 0.0)
        """The longest absence of each that a look has met."""

    def pass_time(self) -> None:
        """Let some time pass, and some server go or come back."""
        self.now += self.choose.uniform(0, 1.5)
        if self.choose.random() < 0.2:
            shard = self.choose.randrange(SHARDS)
            if shard in self.away_since:
                self.come_back(shard)
            else:
                self.away_since[shard] = self.now

    def come_back(self, shard: int) -> None:
        was_s = self.now - self.away_since.pop(shard)
        if shard in self.met:
            self.longest[shard] = max(was_s, self.longest[shard])
        self.met.discard(shard)

    def look(self, aside: SetAside) -> None:
        began, unseen = self.now, []
        for shard in self.choose.sample(range(SHARDS), SHARDS):
            if shard in self.away_since:
                unseen.append(shard)
                self.met.add(shard)
            self.pass_time()  # the others keep it waiting
        aside.looked(unseen, began, self.now)


@pytest.mark.parametrize("seed", range(200))
def test_whatever_was_away_for_long_while_looked_for_is_set_aside(seed: int) -> None:
    servers, aside = Servers(random.Random(seed)), SetAside(CONFIG)
    servers.look(aside)
    for _ in range(60):
        for _ in range(servers.choose.randrange(3)):
            servers.pass_time()
        servers.look(aside)
    for shard in list(servers.away_since):
        servers.come_back(shard)
    servers.look(aside)
    for shard, longest_s in servers.longest.items():
        assert shard in aside or longest_s < LIMIT_S


@pytest.mark.parametrize("away_s", [LIMIT_S - 0.1, LIMIT_S])
def test_an_absence_counts_from_when_it_was_surely_there(away_s: float) -> None:
    """The last look had its answer at once, and waited for others."""
    aside = SetAside(CONFIG)
    aside.looked([], 0.0, 2.0)
    aside.looked([1], 3.0, 5.0)
    aside.looked([], 6.0, away_s)
    assert (1 in aside) == (away_s >= LIMIT_S)


def test_what_is_away_still_is_set_aside_already() -> None:
    aside = SetAside(CONFIG)
    aside.looked([], 0.0, 1.0)
    aside.looked([1], LIMIT_S - 1, LIMIT_S)
    assert aside.shards == {1}


def test_what_comes_back_in_time_is_forgotten() -> None:
    aside = SetAside(CONFIG)
    for began in range(100):
        aside.looked([0] if began % 4 else [], float(began), began + 0.5)
    assert not aside.shards
