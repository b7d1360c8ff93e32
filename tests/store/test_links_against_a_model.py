"""Random sequences of verbs, with losses of data, against a dictionary."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from shardbench import Shard

from ray_route.model import Link
from ray_route.store.connect import Store
from ray_route.store.links import RememberedLink, ShardReply, Why

UIDS = st.sampled_from(["a", "b", "c:d", "{e}"])
OWNERS = st.builds("{}:{}".format, st.sampled_from([0, 1, 10]), st.sampled_from([7, 70]))
WHY = st.sampled_from(["wanted", "unused", "due"])
LATER_S = st.sampled_from([0, 1_000])


@dataclass(frozen=True)
class Held:
    """What the model knows of a link; all TTLs are too long to end during a test."""

    owner: str
    epoch: int
    persistent: bool
    replaced: int = 0
    marked: bool = False

    def value(self) -> bytes:
        mark = (":p" if self.persistent else ":t") if self.marked else ""
        replaced = f":{self.replaced}" if self.replaced else ""
        return f"{self.owner}:{self.epoch}{replaced}{mark}".encode()

    def link(self) -> Link:
        pod, incarnation = self.owner.split(":")
        return Link(int(pod), int(incarnation), self.epoch, self.persistent, 0.0, self.replaced)

    def kept(self) -> RememberedLink:
        """What the router remembers of it."""
        return RememberedLink(self.link(), 1_000.0 if self.marked else None)

    def is_meant(self, meant: str) -> bool:
        numbers = f"{self.owner}:{self.epoch}".split(":")
        return meant.split(":") == numbers[: meant.count(":") + 1]


class LinkMachine(RuleBasedStateMachine):
    """One shard with one router that remembers its counter."""

    store: Store

    @initialize()
    def begin(self) -> None:
        self.shard = Shard(self.store)
        self.held: dict[str, Held] = {}
        self.older: dict[str, Held] = {}
        self.counter = 0
        self.owners: dict[tuple[str, int], str] = {}
        self.highest: dict[str, int] = {}

    def _do(self, verb: str, uid: str, *args: Any, **options: Any) -> tuple[Link | None, bool]:
        router = self.shard.seen_by(1, seen=self.counter)
        reply: ShardReply = router.do(verb, [uid], *([arg] for arg in args), **options)
        assert reply.status == "ok"
        assert reply.counter >= self.counter
        assert reply.counter > self.counter or not reply.written[0]
        self.counter = reply.counter
        return reply.links[0], reply.written[0]

    def _expect(self, uid: str, outcome: tuple[Link | None, bool], *, written: bool) -> None:
        held = self.held.get(uid)
        assert outcome == (held and held.link(), written)
        if held is not None and outcome[0] is not None:
            assert outcome[0].replaced == held.replaced

    def _assign(
        self,
        uid: str,
        outcome: tuple[Link | None, bool],
        owner: str,
        kind: bool,
    ) -> None:
        """Take in a verb that must have given the uid to `owner`."""
        link, _ = outcome
        assert link is not None
        before = self.held.get(uid)
        replaced = before.epoch if before else 0
        if before is not None and before.owner == owner:
            replaced = before.replaced
        self.held[uid] = Held(owner, link.epoch, kind, replaced)
        self._expect(uid, outcome, written=True)
        if before is not None and before.owner == owner:
            assert link.epoch == before.epoch
        else:
            assert link.epoch > self.highest.get(uid, 0)
        self.highest[uid] = link.epoch
        assert self.owners.setdefault((uid, link.epoch), owner) == owner

    @rule(uid=UIDS, owner=OWNERS, persistent=st.booleans())
    def set_if_absent(self, uid: str, owner: str, persistent) -> None:
        outcome = self._do("set_if_absent", uid, owner, persistent=persistent)
        if uid in self.held:
            self._expect(uid, outcome, written=False)
        else:
            self._assign(uid, outcome, owner, persistent)

    @rule(uid=UIDS, owner=OWNERS, off_by=st.sampled_from([0, 0, -1, 1]))
    def relink(self, uid: str, owner: str, off_by: int) -> None:
        held = self.held.get(uid)
        outcome = self._do("relink", uid, held.epoch + off_by if held else 5, owner)
        if held is None:
            self._assign(uid, outcome, owner, False)
        elif off_by == 0:
            self._assign(uid, outcome, owner, held.persistent)
        else:
            self._expect(uid, outcome, written=False)

    @rule(
        uid=UIDS,
        owner=OWNERS,
        off_by=st.sampled_from([0, 0, -1, 1]),
        persistent=st.sampled_from([None, None, False, True]),
    )
    def hand_over(self, uid: str, owner: str, off_by: int, persistent: bool | None) -> None:
        held = self.held.get(uid)
        expected = held.epoch + off_by if held else 5
        outcome = self._do("hand_over", uid, expected, owner, persistent=persistent)
        if held is None or off_by:
            self._expect(uid, outcome, written=False)
        else:
            kind = held.persistent if persistent is None else persistent
            self._assign(uid, outcome, owner, kind)

    @rule(uid=UIDS, off_by=st.sampled_from([0, 0, -1, 1]))
    def regrant(self, uid: str, off_by: int) -> None:
        held = self.held.get(uid)
        outcome = self._do("regrant", uid, held.epoch + off_by if held else 5)
        if held is None or off_by:
            self._expect(uid, outcome, written=False)
            return
        link, _ = outcome
        assert link is not None
        assert link.epoch > self.highest[uid]
        self.held[uid] = replace(held, epoch=link.epoch, replaced=held.epoch)
        self._expect(uid, outcome, written=True)
        self.highest[uid] = link.epoch
        self.owners[uid, link.epoch] = held.owner

    @rule(uid=UIDS, owner=OWNERS, off_by=st.sampled_from([0, 0, -1, 1]))
    def set_expected(self, uid: str, owner: str, off_by: int) -> None:
        held = self.held.get(uid)
        expected = held.epoch + off_by if held else 5
        outcome = self._do("set", uid, owner, expected, persistent=False)
        if held is None or off_by == 0:
            self._assign(uid, outcome, owner, False)
        else:
            self._expect(uid, outcome, written=False)

    @rule(uid=UIDS, owner=OWNERS, persistent=st.sampled_from([None, False, True]))
    def set(self, uid: str, owner: str, persistent: bool | None) -> None:
        held = self.held.get(uid)
        outcome = self._do("set", uid, owner, persistent=persistent)
        kind = held is not None and held.persistent if persistent is None else persistent
        self._assign(uid, outcome, owner, kind)

    @rule(uid=UIDS, owner=OWNERS, steal=st.booleans(), replaces=st.booleans())
    def try_set(self, uid: str, owner: str, steal, replaces) -> None:
        held = self.held.get(uid)
        dead = held.epoch if held and replaces else None
        outcome = self._do("try_set", uid, owner, dead, persistent=False, steal=steal)
        if held is not None and held.owner == owner and held.marked:
            self._expect(uid, outcome, written=False)
        elif held is None or steal or replaces or _is_earlier_life(held.owner, owner):
            self._assign(uid, outcome, owner, False)
        else:
            self._expect(uid, outcome, written=False)

    @rule(uid=UIDS, after_s=LATER_S)
    def remove(self, uid: str, after_s: float) -> None:
        outcome = self._do("remove", uid, after_s=after_s)
        self._removed(uid, outcome, after_s, meant=uid in self.held)

    @rule(uid=UIDS, after_s=LATER_S, owner=OWNERS, parts=st.integers(1, 3), why=WHY)
    def remove_if(self, uid: str, after_s: float, owner: str, parts: int, why: Why) -> None:
        held = self.held.get(uid)
        exact = f"{owner}:{held.epoch if held else 5}"
        meant = ":".join(exact.split(":")[:parts])
        outcome = self._do("remove_if", uid, meant, after_s=after_s, why=why)
        goes = held is not None and {
            "wanted": True,
            "unused": not held.persistent,
            "due": held.marked,
        }.get(why, False)
        self._removed(uid, outcome, after_s, meant=goes and held.is_meant(meant))

    def _removed(self, uid: str, outcome: Any, after_s: float, *, meant: bool) -> None:
        if meant and after_s:
            self.held[uid] = replace(self.held[uid], marked=True)
        elif meant:
            del self.held[uid]
        self._expect(uid, outcome, written=meant)

    @rule(uid=UIDS, off_by=st.sampled_from([0, 1]))
    def refresh(self, uid: str, off_by: int) -> None:
        held = self.held.get(uid)
        link, _ = self._do("refresh", uid, (held.epoch if held else 5) + off_by)
        assert link == (held and held.link())

    @rule(kept=st.sets(UIDS))
    def lose_all_but_some_and_replay(self, kept: set[str]) -> None:
        """Redis loses its counter and most links; the router replays what it remembers."""
        remembered = [(uid, held.kept()) for uid, held in sorted(self.held.items())]
        for uid in self.held.keys() - kept:
            self.shard.do("remove", [uid])
        self._replay(remembered)

    @rule(data=st.data())
    def fail_over_to_what_was_before_and_replay(self, data: st.DataObject) -> None:
        """A replica that lacks the last writes is promoted; the router remembers them."""
        removed = {uid: held for uid, held in self.older.items() if uid not in self.held}
        for uid in sorted({*self.held, *self.older}):
            if self._differs_in_kind_alone(uid):
                continue  # nobody can tell which of the two is newer: what is stored stays
            if data.draw(st.booleans(), label=f"{uid} goes back"):
                self.shard.do("remove", [uid])
                if uid in self.older:
                    self.shard.put(uid, self.older[uid].value(), self.older[uid].link())
        remembered = [(uid, held.kept()) for uid, held in sorted(self.held.items())]
        remembered += [
            (uid, RememberedLink(held.link(), 0.0)) for uid, held in sorted(removed.items())
        ]
        self._replay(remembered)

    def _differs_in_kind_alone(self, uid: str) -> bool:
        held, older = self.held.get(uid), self.older.get(uid)
        return bool(held and older) and held != older and held.epoch == older.epoch

    @rule()
    def replicate(self) -> None:
        """What a promoted replica would hold from now on."""
        self.older = dict(self.held)

    def _replay(self, remembered: list[tuple[str, RememberedLink]]) -> None:
        self.shard.set_counter(0)
        router = self.shard.seen_by(1, seen=self.counter)
        if self.counter:
            assert router.do("set_if_absent", ["a"], ["9:9"]).status == "lost"
            assert router.read("a", seen=self.counter).status == "lost"
        router.do("restore", [], [], last=False)
        for uid, kept in remembered:
            router.do("restore", [uid], [kept], first=False, last=False)
            assert router.do("set_if_absent", ["a"], ["9:9"]).status == "lost"
        reply = router.do("restore", [], [], first=False)
        assert reply.counter > max([self.counter, *self.highest.values()])
        self.counter = reply.counter

    @invariant()
    def the_store_holds_what_the_model_holds(self) -> None:
        if not hasattr(self, "shard"):
            return
        for uid in ("a", "b", "c:d", "{e}"):
            held = self.held.get(uid)
            assert self.shard.raw(uid) == (held and held.value())
            has_no_end = held is not None and held.persistent and not held.marked
            assert (self.shard.pttl(uid) == -1) == has_no_end

    @invariant()
    def the_counter_exceeds_every_epoch_and_is_the_one_replied(self) -> None:
        if getattr(self, "counter", 0):
            assert self.shard.counter()[0] == self.counter
            assert self.counter >= max(self.highest.values(), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
def test_any_sequence_of_verbs_and_losses_ends_as_in_the_model(store: Store):
    machine = type("BoundMachine", (LinkMachine,), {"store": store})
    bounds = settings(max_examples=40, stateful_step_count=25, deadline=None, database=None)
    run_state_machine_as_test(machine, settings=bounds)


def _is_earlier_life(held: str, owner: str) -> bool:
    (pod, life), (new_pod, new_life) = held.split(":"), owner.split(":")
    return pod == new_pod and int(life) <= int(new_life)
