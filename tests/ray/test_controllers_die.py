"""A controller that dies between any two of its steps leaves what its next life brings to an end.

Each life here is made of the controller's own parts, with the real Ray and store, and is dropped
after so many steps; the process of the service's own controller is frozen meanwhile.
"""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import ray
from deploying import recipe_of
from helpers import ManualClock, eventually, router_handle
from lives import SOON_S, Life, Service, upgrade_to
from services import Counter, Gated
from upgraded import Unborn

import ray_route
from ray_route.clock import Deadline
from ray_route.controller import keeping
from ray_route.controller.doing import StoppedError
from ray_route.controller.draining import drain
from ray_route.controller.evenness import Evenness
from ray_route.controller.making import PodMaker
from ray_route.controller.marks import forget, is_given_up, note_end
from ray_route.controller.wishes import DeposedError
from ray_route.errors import InvalidInputError, RouterUnavailableError, RouteTimeoutError
from ray_route.model import DrainProgress
from ray_route.protocol.names import RAY_NAMESPACE
from ray_route.runtime import head_notes
from ray_route.runtime.waiting import no_check
from ray_route.store.scripts import plain_call
from ray_route.store.wanted import Wanted

pytestmark = pytest.mark.slow


@pytest.mark.timeout(300)
def test_growing_and_shrinking_are_completed_whichever_step_was_the_last(service: Service) -> None:
    for last in count(1):
        steps = list(islice(service.life().scaling(3), last))
        later = service.life()
        eventually(lambda later=later: later.looked(3), f"3 pods, after {steps}", SOON_S)
        eventually(lambda: service.alive() == [0, 1, 2], f"all serve, after {steps}", SOON_S)
        back = list(islice(service.life().scaling(2), last))
        later = service.life()
        later.keeping.look()
        list(later.scaling(2))  # its caller asks again
        assert service.alive() == [0, 1], f"after {back}"
        if len(steps) < last and len(back) < last:
            break
    assert last > 3


@pytest.mark.timeout(300)
def test_an_upgrade_goes_on_or_back_whichever_step_was_the_last(service: Service) -> None:
    """Forth with every step the last one; and back from there, with another."""
    uids, first = [f"u{n}" for n in range(20)], 0
    for last in count(1, 3):
        life = service.life()
        life.upgrade(service.recipe)
        steps = list(islice(life.keeping.upgrading.steps(no_check), last))
        turned = service.life()
        turned.wishes.claim()
        is_back = last % 2 == 0 and turned.wishes.wanted.upgrade is not None
        if is_back:
            turned.keeping.upgrading.stopped(InvalidInputError(argument="", value="", reason=""))
            steps += list(islice(turned.keeping.upgrading.steps(no_check), last))
        first = first if is_back else 2 - first
        later = service.life()
        eventually(lambda it=later, at=first: it.looked_at(at), f"all, after {steps}", SOON_S)
        assert service.alive() == [first, first + 1], f"after {steps}"
        service.client.call_many([(uid, (uid,)) for uid in uids], service.service, "add")
        if len(steps) < last:
            break
    assert last > 6


def is_there(actor: str) -> bool:
    return any(it["name"] == actor for it in ray.util.list_named_actors(all_namespaces=True))


def test_what_is_asked_again_before_the_first_look_is_not_begun_again_and_its_class_stays(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = service.life()
    holder, how = life.upgrade(service.recipe)
    under_way = life.wishes.wanted
    for ask in (
        lambda it: it.begin_upgrade(holder, how, SOON_S),
        lambda it: it.give_up(how.request),
    ):
        again = service.asked(monkeypatch)
        ask(again)
        assert (again._wishes.wanted, is_there(holder)) == (under_way, True)
    later = service.life()
    eventually(lambda: later.looked_at(2), "it is brought to its end", SOON_S)
    ended = later.wishes.wanted
    again = service.asked(monkeypatch)
    again.begin_upgrade(holder, how, SOON_S)
    again.give_up(how.request)
    assert (again._wishes.wanted, is_there(holder)) == (ended, True)


def test_the_class_of_an_upgrade_that_did_not_begin_is_let_go_once_that_is_certain(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, (holder, how) = service.asked(monkeypatch), upgrade_to(service.recipe)
    with asked._turn.lock, pytest.raises(ray_route.RouteTimeoutError):
        asked.begin_upgrade(holder, how, 0.1)
    eventually(lambda: not is_there(holder), "it is let go", SOON_S)
    younger, (holder, how) = service.life(), upgrade_to(service.recipe)
    younger.upgrade(service.recipe)
    with pytest.raises(ray_route.ClosedError):
        asked.begin_upgrade(holder, how, SOON_S)
    assert is_there(holder), "who is deposed ends nothing"


def test_a_second_upgrade_waits_for_the_first_as_long_as_its_caller_does(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.life().upgrade(service.recipe)
    asked, (holder, how) = service.asked(monkeypatch), upgrade_to(service.recipe)
    with pytest.raises(ray_route.RouteTimeoutError, match="another upgrade"):
        asked.begin_upgrade(holder, how, 0.5)
    eventually(lambda: not is_there(holder), "it is let go", SOON_S)
    holder, how = upgrade_to(service.recipe)
    with ThreadPoolExecutor(1) as callers:
        begun = callers.submit(asked.begin_upgrade, holder, how, SOON_S)
        while not begun.done():
            asked._looks.look()
        begun.result()
    assert asked._keeping.upgrading.knows(how.request), "under way, or ended by the last look"
    assert asked._wishes.wanted.generation == 3


def test_what_its_caller_has_given_up_is_undone_by_the_next_life_too(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, how = service.life().upgrade(service.recipe)
    service.asked(monkeypatch).give_up(how.request)
    service.asked(monkeypatch)._looks.look()
    asked = service.asked(monkeypatch)
    assert not asked._upgrades.knows("another")
    assert asked._wishes.wanted.upgrade.back
    holder, how = upgrade_to(service.recipe)
    asked.give_up(how.request)
    with pytest.raises(ray_route.CallCancelledError):
        asked.begin_upgrade(holder, how, SOON_S)


def test_an_upgrade_waits_no_longer_to_begin_than_its_caller_allows(service: Service) -> None:
    with pytest.raises(ray_route.RouteTimeoutError) as caught:
        service.deployment.upgrade(Counter, timeout=1)
    assert caught.value.timeout_s == 1


def test_whoever_began_an_upgrade_hears_of_that_though_the_next_has_begun(service: Service) -> None:
    life = service.life()
    _, first = life.upgrade(service.recipe)
    eventually(lambda: life.looked_at(2), "the first is ended", SOON_S)
    _, second = life.upgrade(service.recipe)
    one, other = map(life.keeping.upgrading.progress, (first.request, second.request))
    assert (one.generation, one.done, one.back, one.left) == (2, True, False, ())
    assert (other.generation, other.done, other.left) == (3, False, (2, 3))
    assert life.keeping.upgrading.progress("another") is None
    later = service.life()
    eventually(lambda: later.looked_at(0), "the second is ended", SOON_S)
    for request in (first.request, second.request):
        ended = later.keeping.upgrading.progress(request)
        assert (ended.done, ended.back, ended.problem) == (True, False, None)


def test_a_pod_that_joins_just_before_it_would_be_ended_is_drained(
    service: Service, tmp_path: Path
) -> None:
    life, upgrading = (made := service.life()), made.keeping.upgrading
    life.upgrade(recipe_of(Gated, service.client, service.service, str(tmp_path)))
    assert "wait for pods [2]" in upgrading.steps(no_check)
    upgrading.stopped(InvalidInputError(argument="", value="", reason=""))
    done = []
    for step in upgrading.steps(no_check):
        if step.startswith("end pod 2") and not done.count("end pod 2"):
            (tmp_path / "go").touch()
            eventually(lambda: 2 in service.alive(), "it has joined", SOON_S)
        done.append(step)
    assert "drain pod 2, which has begun another life" in done
    assert service.alive() == [0, 1]


def test_an_upgrade_that_meets_what_nobody_foresaw_goes_back_after_a_few_attempts(
    service: Service,
) -> None:
    life = service.life()
    life.upgrade(service.recipe)

    def surprise() -> None:
        raise ZeroDivisionError("a surprise")

    for is_back in (False, False, True):
        with pytest.raises(ZeroDivisionError) if not is_back else nullcontext():
            life.keeping.look(check=surprise)
        assert life.wishes.wanted.upgrade.back is is_back
    request = life.wishes.wanted.upgrade.request
    told = life.keeping.upgrading.progress(request)
    assert "a surprise" in str(told.error)
    with pytest.raises(ray_route.UpgradeError):
        life.keeping.upgrading.stopped(life.keeping.upgrading.unforeseen(OSError()))
    assert "tried again" in life.keeping.upgrading.progress(request).problem
    eventually(lambda: life.looked_at(0), "it is undone", SOON_S)
    assert "tried again" not in life.keeping.upgrading.progress(request).problem
    assert service.alive() == [0, 1]


def test_an_upgrade_waits_for_a_router_that_is_away(service: Service) -> None:
    life = service.life()
    life.upgrade(service.recipe)
    router, _ = ray.get(router_handle(service.client.namespace).whereabouts.remote())

    def late() -> None:
        os.kill(router, signal.SIGSTOP)
        raise RouteTimeoutError(waiting_for="the router", timeout_s=30)

    try:
        with pytest.raises(RouterUnavailableError):
            life.keeping.look(check=late)
    finally:
        os.kill(router, signal.SIGCONT)
    assert not life.wishes.wanted.upgrade.back
    eventually(lambda: life.looked_at(2), "it goes on", SOON_S)
    assert service.alive() == [2, 3]


def test_what_kept_the_old_class_from_starting_is_not_said_of_the_new_one(
    service: Service,
) -> None:
    life = Life(recipe_of(Unborn, service.client, service.service, "folder"), service.actor)
    life.keeping.look()
    name = f"ray_route:{service.client.namespace}:{service.service}:1"
    ray.kill(ray.get_actor(name, namespace=RAY_NAMESPACE), no_restart=True)

    def problems() -> dict[int, str]:
        life.keeping.look()
        return life.keeping.problems()

    eventually(lambda: "no folder" in problems().get(1, ""), "its start has failed", SOON_S)
    for first in (2, 0):
        life.upgrade(service.recipe)
        eventually(lambda at=first: life.looked_at(at), "it is upgraded", SOON_S)
        assert life.keeping.problems() == {}


def test_a_recipe_that_nothing_has_come_of_is_ended_in_time(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, (left, _), (used, _) = (upgrade_to(service.recipe) for _ in range(3))
    asked = service.asked(monkeypatch)
    asked._wishes.claim()
    asked._wishes.write(replace(asked._wishes.wanted, recipe=used))
    with asked._turn.lock, ThreadPoolExecutor(1) as callers:
        begun = callers.submit(asked.begin_upgrade, *waiting, 2.0)
        eventually(lambda: asked._upgrades._awaited, "it waits", SOON_S)
        asked._looks._tidy()
        assert is_there(left), "its driver may be about to ask"
        monkeypatch.setattr("ray_route.controller.recipes._UNNAMED_S", 0.0)
        asked._looks._tidy_at = 0.0
        asked._looks._tidy()
        eventually(lambda: not is_there(left), "it is ended", SOON_S)
        assert (is_there(waiting[0]), is_there(used)) == (True, True)
        assert begun.exception(SOON_S) is not None


def test_what_a_recipe_that_cannot_be_had_raises_is_told_as_a_start_that_failed(
    service: Service,
) -> None:
    holder, _ = upgrade_to(service.recipe)
    recipes = service.life().upkeep.recipes
    handle = ray.get_actor(holder, namespace=RAY_NAMESPACE)
    for ask in (lambda _: handle.make.remote("not", "what", "it"), lambda _: handle.nothing()):
        with pytest.raises(ray_route.PodStartError, match="can't be had"):
            recipes._ask(holder, ask, SOON_S)


def test_who_asks_before_the_first_look_is_heard_though_the_store_has_lost_what_is_wanted(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = service.client._session.namespace.keys.wanted(service.service)
    service.client._session.namespace.store.one(plain_call("DEL", key))
    asked = service.asked(monkeypatch)
    asked.cordon(0, SOON_S)
    assert (asked._wishes.wanted.replicas, asked._wishes.wanted.cordons) == (2, {0})


def test_a_store_of_yesterday_brings_no_older_generation_back(service: Service) -> None:
    store = service.client._session.namespace.store
    life = service.life()
    life.wishes.claim()
    before = life.wishes.wanted
    life.upgrade(service.recipe)
    list(life.keeping.upgrading.steps(no_check))
    for kept in (before, None):
        assert store.one(life.wishes._calls.want(life.wishes.incarnation, kept)) == b"ok"
        life = service.life()
        life.keeping.look()
        assert life.wishes.wanted is not None
        assert (life.wishes.wanted.generation, life.wishes.wanted.replicas) == (2, 2)
        assert service.alive() == [2, 3]


def test_a_store_that_lost_all_is_made_good_before_anybody_acts_on_what_it_says(
    service: Service,
) -> None:
    first = service.life()
    first.upgrade(service.recipe)
    eventually(lambda: first.looked_at(2), "it is upgraded", SOON_S)
    key = service.client._session.namespace.keys.wanted(service.service)
    service.client._session.namespace.store.one(plain_call("DEL", key))
    life = service.life()
    life.keeping.take_up()
    wanted = life.wishes.wanted
    assert wanted is not None
    assert (wanted.generation, tuple(wanted.indexes)) == (2, (2, 3))
    life.wishes.write(replace(wanted, replicas=3))
    life.keeping.take_up()
    assert life.wishes.wanted.replicas == 3, "it is taken up once"


def test_the_older_of_two_decides_nothing_any_more(service: Service) -> None:
    older, younger = service.life(), service.life()
    older.keeping.look()
    younger.keeping.look()
    for act in (
        older.keeping.look,
        older.wishes.check,
        lambda: list(older.scaling(1)),
    ):
        with pytest.raises(DeposedError):
            act()
    assert service.alive() == [0, 1]


def test_no_pod_is_ended_on_the_word_of_a_store_that_lags(service: Service) -> None:
    first = service.life()
    first.keeping.look()
    key = service.client._session.namespace.keys.wanted(service.service)
    store = service.client._session.namespace.store
    store.one(plain_call("HSET", key, "replicas", 1))
    next_life = service.life()
    next_life.keeping.look()
    assert next_life.wishes.wanted is not None
    assert next_life.wishes.wanted.replicas == 2
    assert service.alive() == [0, 1]


@pytest.mark.parametrize("is_lost", [True, False])
def test_an_end_that_was_cut_short_is_completed_whether_the_store_has_lost_it_or_not(
    service: Service, is_lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    graces, stop = [], keeping.stop
    patched = lambda pods, grace_s: graces.append(grace_s) or stop(pods, grace_s)  # noqa: E731
    monkeypatch.setattr(keeping, "stop", patched)
    first = service.life()
    first.keeping.look()
    note_end(service.actor, 7.5)
    ray.kill(
        ray.get_actor(
            f"ray_route:{service.client.namespace}:{service.service}:0", namespace=RAY_NAMESPACE
        ),
        no_restart=True,
    )
    key = service.client._session.namespace.keys.wanted(service.service)
    store = service.client._session.namespace.store
    if is_lost:
        store.one(plain_call("DEL", key))
    later = service.life()
    later.keeping.look()
    assert later.keeping.done
    assert set(graces) == {7.5}, "its pods have as long as they were given"
    assert not later.upkeep.named()
    assert store.one(plain_call("EXISTS", key)) == 0


@pytest.mark.parametrize("is_begun_anew", [True, False])
def test_an_end_that_is_asked_for_as_it_begins_is_not_forgotten(
    service: Service, is_begun_anew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever ends a service whose controller has not begun notes that in the head, and goes on."""
    life = service.life()
    forget(service.actor)
    write = life.wishes.change if is_begun_anew else life.wishes.write

    def as_it_is_written(wanted: Wanted) -> None:
        write(wanted)
        note_end(service.actor, 0.0)

    monkeypatch.setattr(life.wishes, "change" if is_begun_anew else "write", as_it_is_written)
    if is_begun_anew:
        life.keeping.begin(2, None, None)
    else:
        life.keeping.take_up()
    assert not life.keeping.done
    life.keeping.look()
    assert life.keeping.done
    assert not life.upkeep.named()


@pytest.mark.parametrize("by", ["look", "take_up"])
def test_one_that_is_killed_as_it_goes_on_with_an_end_leaves_no_note(
    service: Service, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Whoever ends its service kills it, and forgets it: its process may run a moment more."""
    life = service.life()
    note_end(service.actor, 0.0)
    read = keeping.noted

    def then_forgotten(actor: str) -> bytes | None:
        found = read(actor)
        forget(actor)
        return found

    def killed(*_: Any) -> None:
        raise LookupError("killed")

    monkeypatch.setattr(keeping, "noted", then_forgotten)
    monkeypatch.setattr(keeping, "stop", killed)
    with pytest.raises(LookupError, match="killed"):
        life.keeping.look() if by == "look" else life.keeping.take_up()
    assert head_notes.names(service.actor) == []


@pytest.fixture
def graces(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """How long pods were given, by what they were told and by what was noted for a next life."""
    found: dict[str, list[float]] = {"told": [], "noted": []}
    stop, note = keeping.stop, keeping.note_end

    def told(pods: list[str], grace_s: float) -> bool:
        found["told"].append(grace_s)
        return stop(pods, grace_s)

    def noted(actor: str, grace_s: float) -> None:
        found["noted"].append(grace_s)
        note(actor, grace_s)

    monkeypatch.setattr(keeping, "stop", told)
    monkeypatch.setattr(keeping, "note_end", noted)
    return found


@pytest.mark.parametrize("grace_s", [0.0, 600.0])
def test_a_look_that_comes_before_the_shutdown_that_waits_ends_all_as_was_asked_for(
    service: Service, monkeypatch: pytest.MonkeyPatch, graces: Any, grace_s: float
) -> None:
    asked = service.asked(monkeypatch)
    asked._looks.look()
    end = asked._requests.end

    def then_looked(*given: Any) -> Any:
        answer = end(*given)
        asked._looks.look()
        assert asked._keeping.done
        return answer

    monkeypatch.setattr(asked._requests, "end", then_looked)
    asked.shutdown(grace_s)
    assert graces == {"told": [grace_s], "noted": [grace_s]}, "once: it is forgotten by then"
    assert head_notes.names(service.actor) == []


@pytest.mark.parametrize("both", [(5.0, 600.0), (600.0, 5.0)])
def test_of_two_shutdowns_the_shorter_grace_counts(
    service: Service, monkeypatch: pytest.MonkeyPatch, graces: Any, both: tuple[float, float]
) -> None:
    asked = service.asked(monkeypatch)
    asked._requests.end(both[0])  # it waits for its turn yet
    asked.shutdown(both[1])
    assert graces == {"told": [5.0], "noted": [5.0]}


def test_what_was_never_begun_ends_by_itself(service: Service) -> None:
    forget(service.actor)
    key = service.client._session.namespace.keys.wanted(service.service)
    service.client._session.namespace.store.one(plain_call("DEL", key))
    patient, impatient = service.life(), service.life()
    patient.keeping.look()
    assert service.alive() == [0, 1]
    assert patient.wishes.wanted is None
    impatient.keeping._begin_by = Deadline.after(0)
    impatient.keeping.look()
    assert impatient.keeping.done
    assert not impatient.upkeep.named()


def drained_slowly(life: Life, patch: pytest.MonkeyPatch, victim: int) -> list[int]:
    """Have pods drained only once a victim that Ray is told to give up meanwhile lives anew."""
    healed: list[int] = []

    def slow(client: Any, service: str, pod: int, deadline_s: float, note: Any) -> None:
        if not healed:
            before = life.upkeep.pods()[victim]
            ray.kill(ray.get_actor(before.actor, namespace=RAY_NAMESPACE), no_restart=True)

            def lives_anew() -> bool:
                note(DrainProgress(pod, left=1, moved=0, running=1))
                return life.upkeep.lives_anew(victim, before)

            eventually(lives_anew, f"pod {victim} is made anew in the drain of pod {pod}", SOON_S)
            healed.append(victim)
        drain(client, service, pod, deadline_s, note)

    patch.setattr("ray_route.controller.upkeep.drain", slow)
    return healed


def test_pods_are_made_anew_while_others_are_drained(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = service.life()
    life.upgrade(service.recipe)
    with monkeypatch.context() as patched:
        healed = drained_slowly(life, patched, victim=2)
        eventually(lambda: life.looked_at(2), "it is upgraded", SOON_S)
    assert healed == [2]
    asked = service.asked(monkeypatch)
    healed = drained_slowly(life, monkeypatch, victim=2)
    asked.scale("r", 1, SOON_S, SOON_S)
    assert (healed, service.alive()) == ([2], [2])


def test_a_scale_in_that_nobody_asks_for_again_is_settled(service: Service) -> None:
    list(islice(service.life().scaling(3), 4))
    stopped = service.life()
    for step in stopped.scaling(1):
        if step == "end pod 2":  # it is drained
            break
    client, name = service.client, service.service
    client.compute_linked_pod("u", name)
    client.move("u", name, 1)
    pid = client.call("u", name, "pid")
    busy = client.service(name)["u"].sleep.remote(SOON_S)
    ray.get(router_handle(client.namespace).drain.remote(name, 1, SOON_S, go_on=False))
    last = service.life()
    last.keeping.look()
    assert last.wishes.wanted.replicas == 2, "pod 1 has a user yet, and serves on"
    assert sorted(last.upkeep.named()) == [0, 1]
    assert {it.state for it in last.upkeep.alive().values()} == {ray_route.RoutingState.READY}
    assert not busy.done()
    os.kill(pid, signal.SIGKILL)  # it sleeps yet


def test_what_was_given_up_long_ago_is_forgotten_but_for_what_is_under_way(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, how = service.life().upgrade(service.recipe)
    asked = service.asked(monkeypatch)
    for request in (how.request, "another"):
        asked.give_up(request)
    for old_s in (3600.0, 0.0):
        monkeypatch.setattr("ray_route.controller.marks._OLD_S", old_s)
        asked._looks._tidy_at = 0.0
        asked._looks._tidy()
        assert is_given_up(service.actor, how.request)
        assert is_given_up(service.actor, "another") == (old_s > 0)


def test_loads_are_evened_out_by_themselves_once_they_were_uneven_for_a_while(
    service: Service,
) -> None:
    client, uids, clock = service.client, [f"u{number}" for number in range(20)], ManualClock()
    for uid in uids:
        client.set_linked_pod_if_absent(uid, service.service, 0)
        client.call(uid, service.service, "add", uid)
    life = service.life()
    life.looked(2)
    keeping = life.keeping
    keeping.evenness = Evenness(keeping.rebalancer, clock)
    asks = 0

    def crowd() -> int:
        links = client.compute_linked_pods(uids, service.service).values()
        return sum(link.pod == 0 for link in links)

    def looked(later_s: float, gives_way: Any = no_check) -> int:
        clock.tick(later_s)
        keeping.look(gives_way=gives_way)
        return crowd()

    def gives_way() -> None:
        nonlocal asks
        asks += 1
        raise StoppedError("somebody asks for something else")

    assert looked(0) == 20, "nobody has asked for it"
    keeping.decide_by(tolerance=0.2)
    assert looked(0) == 20, "it may pass"
    assert looked(59) == 20, "it is not time yet"
    assert (looked(1, gives_way), asks) == (20, 1), "it gives way"
    assert looked(60) == 20, "seen again"
    stray = PodMaker(service.recipe, Counter, []).make(5)
    eventually(lambda: 5 in service.alive(), "another pod", SOON_S)
    assert looked(60) == 20, "not all is as it is wanted"
    ray.kill(stray)
    eventually(lambda: 5 not in service.alive(), "it is gone", SOON_S)
    assert looked(60) == 20
    even = looked(60)
    assert even <= 12
    assert [looked(60) for _ in range(3)] == [even] * 3, "and nobody moves any more"
    keeping.decide_by(tolerance=None)


def test_evening_out_by_itself_gives_way_to_whoever_asks_for_something_else(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, uids = service.client, [f"u{number}" for number in range(40)]
    for uid in uids:
        client.set_linked_pod_if_absent(uid, service.service, 0)
        client.call(uid, service.service, "add", uid)
    monkeypatch.setattr("ray_route.controller.evenness._EACH_S", 0.0)
    monkeypatch.setattr("ray_route.controller.evenness._MOVES_PER_S", 0.5)  # half a minute in all
    asked = service.asked(monkeypatch)
    asked.keep_even(0.2, SOON_S)

    def evens_out() -> bool:
        return "even loads out" in asked._keeping.doing.words

    with ThreadPoolExecutor(1) as looks:
        seen = looks.submit(lambda: [asked._looks.look() for _ in range(2)])  # uneven at both
        eventually(lambda: evens_out() or seen.done(), "it moves users", SOON_S)
        asked.cordon(1, SOON_S)
        seen.result(SOON_S)
    links = client.compute_linked_pods(uids, service.service).values()
    assert 30 < sum(link.pod == 0 for link in links) <= 40, "most were left where they are"
    assert (asked._looks.problem, asked._wishes.wanted.cordons) == ("", {1})
    asked.keep_even(None, SOON_S)


def test_a_scaling_that_fails_in_a_later_life_leaves_what_there_was_before_the_first(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = service.life()
    life.wishes.claim()
    before = life.keeping.scaling.before("r", life.wishes.wanted)
    life.wishes.write(before.scaled(4))  # and it dies
    service.recipe = recipe_of(Unborn, service.client, service.service, "no folder")
    asked = service.asked(monkeypatch)
    with pytest.raises(ray_route.PodStartError):
        asked.scale("r", 4, SOON_S, SOON_S)
    assert asked._wishes.wanted.indexes == before.indexes == (0, 1)
