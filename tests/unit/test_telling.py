"""What a pod tells the router of uids that it has given up, and asks about them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray
from helpers import ManualClock, eventually
from test_admission_rules import Pod
from test_states import arrive, give_up

from ray_route.clock import now
from ray_route.pod import closing
from ray_route.pod.telling import Telling
from ray_route.pod.unsettled import unfinished
from ray_route.protocol.commands import Outcome, Taken
from ray_route.store.keys import Keys


class Router:
    """Plays the router that a pod reaches, or does not."""

    def __init__(self) -> None:
        self.lost = 0
        """So many answers are lost."""
        self.error: Exception = ray.exceptions.ActorUnavailableError("its connection broke", None)
        """What is raised then."""
        self.told: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        self.settles = threading.Event()
        self.settles.set()
        self.present = 0
        """The epoch under which uids are this pod's again; 0: they are not."""
        self.keys = Keys("ns", 4)
        self.seen: set[tuple[int, int]] = set()

    def saw_all(self, seen: Iterable[tuple[int, int]]) -> None:
        self.seen.update(seen)

    def ask(self, method: str, _: object, what: Any) -> Any:
        if method == "settle":
            self.asked.append(dict(what))
            assert self.settles.wait(60)
            return {uid: (epoch, self.present) for uid, (epoch, _) in what.items()}
        self.told += what
        if self.lost:
            self.lost -= 1
            raise self.error
        return None


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells and asks again sooner than it does elsewhere."""
    monkeypatch.setattr("ray_route.pod.telling._LOOK_S", 0.02)
    monkeypatch.setattr("ray_route.pod.telling._SETTLE_S", 0.1)


@pytest.fixture
def pod() -> Pod:
    return Pod(ManualClock())


@contextmanager
def telling(pod: Pod, router: Router) -> Iterator[None]:
    address = lambda: ("svc", 0, 7)  # noqa: E731
    one = Telling(router, router.ask, pod.held, pod.releases, address)  # type: ignore[arg-type]
    try:
        yield
    finally:
        one.end()


def recall(pod: Pod, keys: Keys, uid: str) -> None:
    """Have it told what is held in the shard of a uid."""
    with pod.held.lock:
        pod.held.recalls.told({keys.shard(uid)}, keys.shard, pod.clock())


def keep_a_state(pod: Pod, uid: str) -> None:
    """Have a uid given up, with a state, long ago."""
    give_up(pod, uid)
    pod.held.entries[uid].given_at = now() - 10


@pytest.mark.parametrize(
    "error", [ray.exceptions.ActorUnavailableError("its connection broke", None), RuntimeError("!")]
)
def test_an_outcome_whose_telling_failed_is_told_again_whatever_was_raised(
    pod: Pod, error: Exception
) -> None:
    router = Router()
    router.lost, router.error = 2, error
    with telling(pod, router):
        pod.held.outcomes.tell([Taken(1, "u")])
        pod.release(2, "never here", 100)
        wanted = [Taken(1, "u"), Outcome(2, "never here", 100, given=True)]
        eventually(lambda: not router.lost and router.told[-2:] == wanted, "all are told")


def test_what_the_router_lets_one_wait_for_keeps_no_outcome_waiting(pod: Pod) -> None:
    router = Router()
    router.settles.clear()
    keep_a_state(pod, "u")
    try:
        with telling(pod, router):
            eventually(lambda: router.asked, "it asks whose the uid is")
            pod.held.outcomes.tell([Taken(1, "other")])
            eventually(lambda: router.told == [Taken(1, "other")], "it tells of another")
    finally:
        router.settles.set()


@pytest.mark.parametrize("present", [0, 200], ids=["another's", "this pod's"])
def test_an_answer_that_comes_after_a_restoration_is_asked_for_again(
    pod: Pod, present: int
) -> None:
    """The server may have lost what it tells of, and the pod has told what it remembered before."""
    router = Router()
    router.settles.clear()
    router.present = present
    keep_a_state(pod, "u")
    with telling(pod, router):
        eventually(lambda: router.asked, "it asks whose the uid is")
        recall(pod, router.keys, "u")
        router.settles.set()
        eventually(lambda: len(router.asked) > 2, "it asks again")
        assert router.seen == {(router.keys.shard("u"), max(100, present))}, "it is believed"
        assert pod.held.entries["u"].epoch == 100
        assert pod.held.nobodys.has_state("u"), "of a link that is there, perhaps"
        router.present = 300
        pod.clock.tick(1)
        eventually(lambda: "u" in pod.held.arrived, "it is this pod's")
    assert pod.held.entries["u"].epoch == 300


def test_what_it_is_told_of_no_server_may_lack_once_it_is_taken_in(pod: Pod) -> None:
    class Seen(Router):
        def saw_all(self, seen: Iterable[tuple[int, int]]) -> None:
            assert "u" not in pod.held.arrived
            super().saw_all(seen)

    router = Seen()
    router.present = 200
    keep_a_state(pod, "u")
    with telling(pod, router):
        eventually(lambda: "u" in pod.held.arrived, "it is this pod's")
    assert router.seen == {(router.keys.shard("u"), 200)}


def test_a_shard_that_cannot_be_restored_keeps_no_uid_of_another_unsettled(pod: Pod) -> None:
    """Whoever names a uid of it has the router try again, which has its uids told first."""

    class Tries(Router):
        fails = True

        def ask(self, method: str, address: object, what: Any) -> Any:
            if method == "settle" and self.fails:  # for this pod, or for another
                recall(pod, self.keys, "lost")
                pod.clock.tick(0.01)
            return super().ask(method, address, what)

    router = Tries()
    router.present = 200
    for uid in ("lost", "safe"):
        pod.hold(uid, 100)
        keep_a_state(pod, uid)
    assert router.keys.shard("lost") != router.keys.shard("safe")
    with telling(pod, router):
        eventually(lambda: "safe" in pod.held.arrived, "it is this pod's")
        eventually(lambda: len(router.asked) > 2, "it asks again")
        assert router.asked[0].keys() == {"lost", "safe"}
        assert all(asked.keys() == {"lost"} for asked in router.asked[1:])
        assert pod.held.entries["lost"].epoch == 100, "a server may have lost the other one"
        router.fails = False
        eventually(lambda: "lost" in pod.held.arrived, "it is this pod's")


def test_a_pod_that_leaves_asks_about_what_has_arrived_and_no_more_about_the_rest(pod: Pod) -> None:
    router = Router()
    arrive(pod, "came")
    pod.give_up("u")
    for uid in ("came", "u"):
        pod.held.entries[uid].given_at = now() - 10
    closing.leave_all(pod.held)
    assert unfinished(pod.held) == ["came"], "it would be lost with this pod"
    with telling(pod, router):
        eventually(lambda: not unfinished(pod.held), "it is known to be another's")
    assert router.asked[0] == {"came": (50, False)}


def test_many_uids_are_settled_though_the_router_can_tell_of_few_in_time(pod: Pod) -> None:
    class Slow(Router):
        def ask(self, method: str, address: object, what: Any) -> Any:
            if len(what) > 2_000:
                raise ray.exceptions.GetTimeoutError
            return super().ask(method, address, what)

    uids = [f"u{number}" for number in range(5_000)]
    pod.releases.release(1, dict.fromkeys(uids, 100), 3.0, closes=True, router=1)
    for entry in pod.held.entries.values():
        entry.given_at = now() - 10
    router = Slow()
    with telling(pod, router):
        eventually(lambda: not pod.held.nobodys.given_up, "all are settled")
    assert sum(map(len, router.asked)) == len(uids), "each once"


def test_some_of_which_the_router_can_never_tell_keep_no_others_waiting(pod: Pod) -> None:
    class Partial(Router):
        poison = ""

        def ask(self, method: str, address: object, what: Any) -> Any:
            if method == "settle":
                self.poison = self.poison or next(iter(what))
            if self.poison in what:
                raise RuntimeError("nobody foresaw it")
            return super().ask(method, address, what)

    uids = [f"u{number}" for number in range(3_000)]
    pod.releases.release(1, dict.fromkeys(uids, 100), 3.0, closes=True, router=1)
    for entry in pod.held.entries.values():
        entry.given_at = now() - 10
    with telling(pod, Partial()):
        eventually(lambda: len(pod.held.nobodys.given_up) <= 1_000, "all others are settled")
