"""A link whose pod is alive moves by way of its owner, and only so."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import ray
from helpers import end_router, eventually, unique_name
from proxy import TcpProxy
from services import AsyncCounter, Carrier, Counter, Gated

import ray_route
from ray_route.model import RoutingState
from ray_route.protocol.calls import Refused
from ray_route.protocol.changes import read_entry
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.scripts import plain_call
from ray_route.testing.faults import frozen_pod

pytestmark = pytest.mark.slow


@pytest.fixture
def agents(client: Any) -> Any:
    """Two agents by hand, of one service, in this very process: plain objects to look into."""
    service, log = unique_name(), []

    def hooks(pod: int) -> dict[str, Any]:
        return {
            "on_acquire": lambda uid: log.append((pod, "acquire", uid)),
            "on_release": lambda uid: log.append((pod, "release", uid)),
        }

    made = [ray_route.PodAgent(client.namespace, service, n, **hooks(n)).start() for n in (0, 1)]
    yield made, log
    for agent in made:
        agent.stop()


def admit(agent: Any, link: ray_route.Link, uid: str = "u") -> None:
    agent.admit(uid, link.epoch, link.incarnation)


def refused(agent: Any, link: ray_route.Link, uid: str = "u") -> bool:
    try:
        admit(agent, link, uid)
    except ray_route.FencedError:
        return True
    return False


def test_a_forced_move_releases_before_it_acquires(client: Any, agents: Any) -> None:
    (first, second), log = agents
    one = first.set_linked_pod("u")
    admit(first, one)
    two = first.set_linked_pod("u", pod=1)

    assert (one.pod, two.pod) == (0, 1)
    assert two.epoch > one.epoch
    assert one.persistent
    assert two.persistent
    assert refused(first, one)
    admit(second, two)
    assert log == [(0, "acquire", "u"), (0, "release", "u"), (1, "acquire", "u")]
    assert client.get_linked_pod_not_cache("u", first.service) == two


def test_a_move_waits_for_the_running_call(client: Any, agents: Any) -> None:
    (first, second), log = agents
    link = first.set_linked_pod("u", persistent=False)
    entered, leave = threading.Event(), threading.Event()

    def serve() -> None:
        with first.serving("u", link.epoch, link.incarnation):
            entered.set()
            leave.wait(20)
            log.append((0, "end", "u"))

    serving = threading.Thread(target=serve)
    serving.start()
    entered.wait(10)
    moving = threading.Thread(target=second.set_linked_pod, args=("u",))
    moving.start()
    eventually(lambda: refused(first, link), "new calls are refused while the old one runs")
    assert client.get_linked_pod_not_cache("u", first.service) == link
    leave.set()
    moving.join(10)
    serving.join(10)
    assert log == [(0, "acquire", "u"), (0, "end", "u"), (0, "release", "u")]
    assert client.get_linked_pod_not_cache("u", first.service).pod == 1


def test_a_uid_that_is_kept_too_long_stays_where_it_is(client: Any, agents: Any) -> None:
    (first, second), _ = agents
    link = first.set_linked_pod("u")
    with (
        first.serving("u", link.epoch, link.incarnation),
        pytest.raises(ray_route.PodUnavailableError, match="calls did not end"),
    ):
        second.set_linked_pod("u", timeout=0.5)
    admit(first, link)
    assert client.get_linked_pod_not_cache("u", first.service) == link


def test_try_set_asks_and_steal_takes(client: Any, agents: Any) -> None:
    (first, second), log = agents
    ok, link = first.try_set_linked_pod("u")
    assert ok
    assert second.try_set_linked_pod("u") == (False, link)
    ok, same = first.try_set_linked_pod("u")
    assert ok
    assert same == link
    admit(first, link)
    ok, stolen = second.try_set_linked_pod("u", steal=True)
    assert ok
    assert stolen.pod == 1
    assert log[-1] == (0, "release", "u")


def test_a_removal_goes_by_way_of_the_owner(client: Any, agents: Any) -> None:
    (first, second), log = agents
    link = first.set_linked_pod("u")
    admit(first, link)
    assert not second.remove_linked_pod_with_id("u", 1)
    assert client.get_linked_pod_not_cache("u", first.service) == link
    assert second.remove_linked_pod_with_id("u", 0)
    assert log[-1] == (0, "release", "u")
    assert refused(first, link)
    assert client.get_linked_pod_not_cache("u", first.service) is None
    assert not first.remove_linked_pod("u")


def test_a_removal_after_a_delay_ends_every_lease_with_the_link(client: Any, agents: Any) -> None:
    (first, _), _ = agents
    link = first.set_linked_pod("u")
    admit(first, link)
    assert client.get_linked_pod("u", first.service) == link

    assert first.remove_linked_pod("u", after_s=1.0)

    asked_at = time.monotonic()
    held = client.get_linked_pod_not_cache("u", first.service)
    assert held.epoch == link.epoch
    assert held.persistent, "want of use ends it no sooner"
    eventually(
        lambda: client.get_linked_in_cache("u", first.service) is None, "caches hear of it", 0.9
    )
    admit(first, link)
    eventually(lambda: refused(first, link), "the owner gives it up")
    assert time.monotonic() - asked_at > 0.5
    eventually(
        lambda: client.get_linked_pod_not_cache("u", first.service) is None, "and its link goes"
    )


def test_near_caches_elsewhere_hear_of_a_move(client: Any, agents: Any) -> None:
    (first, second), _ = agents
    service = first.service
    for number in range(20):
        uid = f"m{number}"
        link = first.set_linked_pod(uid)
        assert client.get_linked_pod(uid, service) == link
        moved = second.set_linked_pod(uid)
        eventually(lambda uid=uid: client.get_linked_in_cache(uid, service) is None, "it is heard")
        assert client.get_linked_pod(uid, service) == moved


def test_deny_new_keeps_links_and_takes_none(client: Any, agents: Any) -> None:
    (first, second), _ = agents
    link = first.set_linked_pod("kept")
    first.set_routing_state("DENY_NEW")
    assert first.get_routing_state() is RoutingState.DENY_NEW
    links = client.compute_linked_pods([f"n{n}" for n in range(20)], first.service)
    assert {link.pod for link in links.values()} == {1}
    assert client.compute_linked_pod("kept", first.service) == link
    admit(first, link, "kept")
    with pytest.raises(ray_route.PodUnavailableError, match="DENY_NEW"):
        second.set_linked_pod("kept", pod=0)
    first.set_routing_state("READY")
    assert client.set_linked_pod_if_absent("again", first.service, 0).pod == 0


def test_shutdown_refuses_and_lets_links_go(client: Any, agents: Any) -> None:
    (first, second), _ = agents
    link = first.set_linked_pod("u", persistent=False)
    admit(first, link)
    first.set_routing_state("SHUTDOWN")
    assert refused(first, link)

    def moved() -> ray_route.Link | None:
        """Return where the uid is once the client has heard that its pod serves no more."""
        link: ray_route.Link = client.compute_linked_pod("u", first.service)
        return link if link.pod == 1 else None

    admit(second, eventually(moved, "it is another's"))


def test_bad_input_to_an_agent_changes_nothing(agents: Any) -> None:
    (first, _), _ = agents
    link = first.set_linked_pod("u")
    for bad in (
        lambda: first.set_linked_pod(""),
        lambda: first.set_linked_pod("u", pod=-1),
        lambda: first.set_linked_pod("u", pod=9),
        lambda: first.remove_linked_pod("u", after_s=-1),
        lambda: first.remove_linked_pod_with_id("u", None),
        lambda: first.set_routing_state("AWAY"),
        lambda: first.set_load_state(float("nan")),
        lambda: first.set_load_state("much"),
        lambda: first.set_load_state(-1),
    ):
        with pytest.raises(ray_route.InvalidInputError):
            bad()
    admit(first, link)


def test_links_in_use_never_end_and_unused_ones_are_released(ray_session: None) -> None:
    name, service, released = unique_name(), "svc", []
    with ray_route.connect(name, ttl_s=1.5, margin_s=0.5) as client:
        agent = ray_route.PodAgent(name, service, 0, on_release=released.append).start()
        used = client.compute_linked_pod("used", service)
        unused = client.compute_linked_pod("unused", service)
        admit(agent, unused, "unused")

        def unused_has_ended() -> bool:
            admit(agent, used, "used")
            return bool(released) and client.get_linked_pod_not_cache("unused", service) is None

        eventually(unused_has_ended, "the unused uid is released, then its link ends")
        assert released == ["unused"]
        assert client.get_linked_pod_not_cache("used", service) == used
        admit(agent, used, "used")
        until = agent._held.entries["used"].until
        agent._serving._releaser._refresh({"used": used.epoch}, 1.5)
        assert agent._held.entries["used"].until > until, "it need not be read again so soon"
        agent.stop()
    end_router(name)


@pytest.mark.parametrize("after_s", [0.1, 60.0], ids=["its removal is due", "long before that"])
def test_a_uid_that_is_to_go_is_nobody_elses_while_it_has_a_call(
    ray_session: None, after_s: float
) -> None:
    """However long that lasts: its link outlives it, and then its hook runs."""
    name, service, released = unique_name(), "svc", []
    with ray_route.connect(name, ttl_s=1.5, margin_s=0.5) as client:
        agent = ray_route.PodAgent(name, service, 0, on_release=released.append).start()
        link = client.compute_linked_pod("u", service)
        with agent.serving("u", link.epoch, link.incarnation):
            assert agent.remove_linked_pod("u", after_s=after_s)
            over_at = (
                time.monotonic() + 4.0
            )  # its life was 1.5 s, and of those 1.6 s were to be left
            eventually(lambda: time.monotonic() >= over_at, "the call lasts", 30)
            assert client.get_linked_pod_not_cache("u", service) == link
            assert released == []
        if after_s < 1:
            eventually(lambda: client.get_linked_pod_not_cache("u", service) is None, "it goes")
            assert released == ["u"]
        agent.stop()
    end_router(name)


def test_a_link_that_becomes_persistent_does_not_end_for_want_of_use(ray_session: None) -> None:
    name, service, released = unique_name(), "svc", []
    with ray_route.connect(name, ttl_s=3.0, margin_s=0.2) as client:
        agent = ray_route.PodAgent(name, service, 0, on_release=released.append).start()
        for uid in ("kept", "unused"):  # in this order: the first is idle before the other
            admit(agent, client.compute_linked_pod(uid, service), uid)
        kept = agent.set_linked_pod("kept")
        eventually(
            lambda: client.get_linked_pod_not_cache("unused", service) is None, "the other ends"
        )
        assert released == ["unused"]
        assert client.get_linked_pod_not_cache("kept", service) == kept
        assert kept.persistent
        agent.stop()
    end_router(name)


def test_a_persistent_link_that_is_to_go_does_not_end_before_for_want_of_use(
    ray_session: None,
) -> None:
    """Though its pod has never had its uid as its removal was scheduled."""
    name, service, released = unique_name(), "svc", []
    with ray_route.connect(name, ttl_s=3.0, margin_s=0.2) as client:
        agent = ray_route.PodAgent(name, service, 0, on_release=released.append).start()
        for uid in ("kept", "unused"):  # in this order: the first is idle before the other
            link = agent.set_linked_pod(uid, persistent=uid == "kept")
            assert agent.remove_linked_pod(uid, after_s=600.0)
            admit(agent, link, uid)
        eventually(
            lambda: client.get_linked_pod_not_cache("unused", service) is None, "the other ends"
        )
        assert released == ["unused"]
        assert client.get_linked_pod_not_cache("kept", service) is not None
        assert agent.remove_linked_pod("kept", after_s=0.1)
        eventually(lambda: client.get_linked_pod_not_cache("kept", service) is None, "it ends")
        assert released == ["unused", "kept"]
        agent.stop()
    end_router(name)


def test_a_drain_moves_every_uid_with_its_state_and_fails_no_call(client: Any, deploy: Any) -> None:
    service = deploy(Carrier, replicas=3).service
    uids = [f"u{number}" for number in range(60)]
    for uid in uids:
        client.call(uid, service, "add", uid)
    before = client.compute_linked_pods(uids, service)
    stop, failures, answers = threading.Event(), [], dict.fromkeys(uids, 1)

    def keep_calling(some: list[str]) -> None:
        while not stop.is_set():
            for uid in some:
                try:
                    answers[uid] += 1
                    assert client.call(uid, service, "add", uid) == answers[uid]
                except BaseException as error:  # noqa: BLE001
                    failures.append(error)

    callers = [threading.Thread(target=keep_calling, args=(uids[n::3],)) for n in range(3)]
    for caller in callers:
        caller.start()
    progress = list(client.drain(service, before[uids[0]].pod))
    stop.set()
    for caller in callers:
        caller.join(20)

    drained = before[uids[0]].pod
    assert failures == []
    assert progress[-1].done
    assert progress[-1].problem is None
    assert progress[-1].moved == sum(link.pod == drained for link in before.values())
    after = client.compute_linked_pods(uids, service)
    assert [u for u in uids if after[u] != before[u]] == [
        u for u in uids if before[u].pod == drained
    ]
    assert client.pods(service)[drained].state is RoutingState.SHUTDOWN
    assert drained not in {
        link.pod
        for link in client.compute_linked_pods([f"n{n}" for n in range(20)], service).values()
    }


def test_a_drain_past_its_deadline_says_what_is_left(client: Any, agents: Any) -> None:
    (first, _), _ = agents
    link = first.set_linked_pod("u")
    with first.serving("u", link.epoch, link.incarnation):
        *_, last = client.drain(first.service, 0, deadline_s=0.3)
    assert last.done
    assert last.left == 1
    assert "1 uids were left" in last.problem
    admit(first, link)
    assert client.pods(first.service)[0].state is RoutingState.READY, "it is given back"
    *_, last = client.drain(first.service, 0, deadline_s=10)
    assert last.problem is None
    assert client.compute_linked_pod("u", first.service).pod == 1


def told_states(client: Any, service: str, pod: int) -> list[str]:
    """Return each state that a pod was in for a moment, as the change stream has told."""
    namespace = client._session.namespace
    key = namespace.keys.log
    entries = namespace.store.one(plain_call("XRANGE", key, "-", "+"))
    changes = [read_entry(fields)[2] for _, fields in entries]
    records = [change.pod for change in changes if change.pod and change.service == service]
    return [record.state.value for record in records if record.pod == pod]


def test_a_drain_without_a_target_is_refused_before_it_takes_anything(
    client: Any, agents: Any
) -> None:
    (first, second), log = agents
    link = first.set_linked_pod("u")
    admit(first, link)
    second.set_routing_state("DENY_NEW")
    for _ in range(2):
        *_, last = client.drain(first.service, 0, deadline_s=10)
        assert "no other pod is READY" in last.problem
        assert client.pods(first.service)[0].state is RoutingState.READY
    admit(first, link)
    assert log == [(0, "acquire", "u")]
    assert client.get_linked_pod_not_cache("u", first.service) == link

    second.set_routing_state("READY")
    eventually(lambda: told_states(client, first.service, 1)[-1] == "READY", "all has been told")
    assert set(told_states(client, first.service, 0)) == {"READY"}, "it never denied new uids"
    *_, last = client.drain(first.service, 0, deadline_s=10)
    assert last.problem is None
    assert log == [(0, "acquire", "u"), (0, "release", "u")]


def test_a_drain_that_a_new_router_takes_up_gives_the_pod_back_as_it_was(
    ray_session: None,
) -> None:
    name = unique_name()
    with ray_route.connect(name) as client:
        first, second = (ray_route.PodAgent(name, "svc", pod).start() for pod in (0, 1))
        link = first.set_linked_pod("u")
        with first.serving("u", link.epoch, link.incarnation):
            draining = client.drain("svc", 0, deadline_s=10)
            while client.pods("svc")[0].state is RoutingState.READY:
                assert not next(draining).done
            end_router(name)
            began = time.monotonic()
            *_, last = draining
            assert time.monotonic() - began < 25, "with what is left of its deadline"
        assert "were left" in last.problem
        assert client.pods("svc")[0].state is RoutingState.READY
        for agent in (first, second):
            agent.stop()
    end_router(name)


def test_a_busy_uid_is_served_while_its_pod_is_drained_and_then_moves(
    client: Any, agents: Any
) -> None:
    (first, _), log = agents
    link = first.set_linked_pod("u")
    idle = first.set_linked_pod("idle")
    admit(first, idle, "idle")
    with first.serving("u", link.epoch, link.incarnation):
        draining = client.drain(first.service, 0, deadline_s=60)
        while next(draining).left != 1:
            admit(first, link)
        assert client.compute_linked_pod("idle", first.service).pod == 1
        for _ in range(5):
            assert not next(draining).done
            admit(first, link)
    *_, last = draining
    assert (last.problem, last.moved) == (None, 2)
    assert client.compute_linked_pod("u", first.service).pod == 1
    assert log.count((0, "release", "u")) == 1


def test_a_uid_that_is_never_idle_moves_before_the_deadline(client: Any, agents: Any) -> None:
    (first, _), _ = agents
    link = first.set_linked_pod("u")
    refused_at: list[float] = []

    def overlap() -> None:
        with ExitStack() as running:
            running.enter_context(first.serving("u", link.epoch, link.incarnation))
            begun.set()
            while True:
                older = running.pop_all()
                with older:
                    threading.Event().wait(0.001)  # busy for ever, not with taking turns
                    try:
                        running.enter_context(first.serving("u", link.epoch, link.incarnation))
                    except ray_route.FencedError:
                        refused_at.append(time.monotonic())
                        return

    begun = threading.Event()
    overlapping = threading.Thread(target=overlap)
    overlapping.start()
    begun.wait(10)
    asked_at = time.monotonic()
    *_, last = client.drain(first.service, 0, deadline_s=6)
    overlapping.join(20)
    assert last.problem is None
    assert refused_at[0] - asked_at > 3, "its calls are refused only towards the end"
    assert client.compute_linked_pod("u", first.service).pod == 1


def test_of_the_last_two_pods_one_stays_ready(client: Any, agents: Any) -> None:
    (first, second), log = agents
    for agent in (first, second):
        admit(agent, agent.set_linked_pod(f"u{agent.pod}"), f"u{agent.pod}")
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda pod: [*client.drain(first.service, pod)][-1], (0, 1)))
    refused = [end for end in ends if end.problem]
    assert len(refused) == 1
    stayed = refused[0].pod
    states = {pod: record.state.value for pod, record in client.pods(first.service).items()}
    assert states == {stayed: "READY", 1 - stayed: "SHUTDOWN"}
    assert [entry for entry in log if entry[1] == "release"] == [
        (1 - stayed, "release", f"u{1 - stayed}")
    ]


def test_a_second_drain_goes_by_its_own_deadline_and_both_are_told_so(
    client: Any, agents: Any
) -> None:
    (first, second), _ = agents
    service = first.service
    third = ray_route.PodAgent(client.namespace, service, 2).start()
    link = first.set_linked_pod("busy")
    admit(second, second.set_linked_pod("idle"), "idle")
    with first.serving("busy", link.epoch, link.incarnation):
        going_on = client.drain(service, 0, deadline_s=600)
        assert not next(going_on).done
        *_, last = client.drain(service, 1, deadline_s=20)
        assert last.problem is None, "drains of other pods are not in its way"
        assert client.compute_linked_pod("idle", service).pod == 2

        *_, last = client.drain(service, 0, deadline_s=1)
        assert "1 uids were left after 1 s" in last.problem
        *_, told = going_on
        assert told == last
        assert "a later drain has set a deadline of 1 s" in told.notice
        assert client.pods(service)[0].state is RoutingState.READY

        earlier = client.drain(service, 0, deadline_s=5)  # within it the later one is there
        later = client.drain(service, 0, deadline_s=600)
        *_, last = earlier
        assert "a later drain has set a deadline of 600 s" in last.problem
    *_, last = later
    assert last.problem is None
    assert client.compute_linked_pod("busy", service).pod == 2
    third.stop()


def test_a_drain_waits_for_a_target_that_is_being_restarted(
    client: Any, deploy: Any, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    go.touch()
    service = deploy(Gated, replicas=2, args=(str(tmp_path),)).service
    links = client.compute_linked_pods([f"u{number}" for number in range(20)], service)
    uids = {links[uid].pod: uid for uid in links}
    assert client.call(uids[0], service, "add", uids[0]) == 1
    pid = client.call(uids[1], service, "pid")
    go.unlink()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: client.pods(service)[1].life is ray_route.Life.GONE, "its death is known")

    draining = client.drain(service, 0, deadline_s=60)
    for _ in range(5):
        assert not next(draining).done
    assert client.pods(service)[0].state is RoutingState.READY, "nothing has been taken yet"
    assert client.call(uids[0], service, "add", uids[0]) == 2
    go.touch()
    *_, last = draining
    assert last.problem is None
    assert client.compute_linked_pod(uids[0], service).pod == 1


@pytest.mark.parametrize("cls", [Counter, AsyncCounter])
def test_a_pod_that_gets_sigterm_is_drained_first(client: Any, deploy: Any, cls: type) -> None:
    service = deploy(cls, replicas=2).service
    uids = [f"u{number}" for number in range(20)]
    client.call_many([(uid, (uid,)) for uid in uids], service, "add")
    before = client.compute_linked_pods(uids, service)
    leaving = before["u0"]
    os.kill(client.call("u0", service, "pid"), signal.SIGTERM)

    eventually(
        lambda: (
            client.pods(service)[leaving.pod].life is ray_route.Life.RESIGNED
            or client.pods(service)[leaving.pod].incarnation > leaving.incarnation
        ),
        "the pod resigns",
    )
    results = client.call_many([(uid, (uid,)) for uid in uids], service, "add")
    assert not [result for result in results if isinstance(result, Exception)]
    stayed = [uid for uid in uids if before[uid].pod != leaving.pod]
    after = client.compute_linked_pods(uids, service)
    assert all(after[uid] == before[uid] for uid in stayed)
    assert all(after[uid] != before[uid] for uid in uids if uid not in stayed)


def test_scaling_in_drains_the_highest_pods_first(client: Any, deploy: Any) -> None:
    deployment = deploy(replicas=3)
    service = deployment.service
    uids = [f"u{number}" for number in range(30)]
    client.call_many([(uid, (uid,)) for uid in uids], service, "add")
    before = client.compute_linked_pods(uids, service)

    deployment.scale(1)

    after = client.compute_linked_pods(uids, service)
    assert {link.pod for link in after.values()} == {0}
    assert all(after[u] == before[u] for u in uids if before[u].pod == 0)
    lives = {pod: record.life.value for pod, record in client.pods(service).items()}
    assert lives == {0: "alive", 1: "resigned", 2: "resigned"}
    deployment.scale(2)
    assert client.pods(service)[1].life is ray_route.Life.ALIVE


@pytest.mark.parametrize("exits", [True, False])
def test_a_frozen_pod_loses_its_uids_and_refuses_when_it_wakes(
    ray_session: None, exits: bool
) -> None:
    name, options = unique_name(), {"pod_lease_s": 3.0, "heartbeat_s": 0.5}
    with (
        ray_route.connect(name, **options) as client,
        ray_route.deploy(
            Counter, namespace=name, service="svc", replicas=2, exit_when_fenced=exits
        ) as deployment,
    ):
        before = client.compute_linked_pod("u", "svc")
        header = ("u", before.epoch, before.incarnation, "add")
        with frozen_pod(client, "svc", before.pod) as pid:
            frozen_at = time.monotonic()
            late = client.actor("u", "svc")._ray_route_call.remote(header, "u")  # in its queue
            assert client.call("u", "svc", "add", "u", idempotent=True) == 1
            assert time.monotonic() - frozen_at < 3.0 + 20
            assert client.compute_linked_pod("u", "svc").pod != before.pod
        assert_never_served(late)
        assert client.call("u", "svc", "add", "u") == 2
        eventually(
            lambda: deployment.pods()[before.pod].incarnation > before.incarnation,
            "the fenced pod comes back as another",
        )
        eventually(lambda: not Path(f"/proc/{pid}").exists(), "its process ends, life over")
    end_router(name)


def assert_never_served(ref: Any) -> None:
    try:
        assert isinstance(ray.get(ref, timeout=20), Refused)
    except ray.exceptions.RayActorError:
        return  # it exited before it came to it


def test_an_outage_of_redis_longer_than_the_lease_moves_nobody(ray_session: None) -> None:

    name, options = unique_name(), {"pod_lease_s": 1.5, "heartbeat_s": 0.5, "staleness_s": 1.5}
    with EmbeddedServer() as server, TcpProxy(server.port) as proxy:
        url = server.url.replace(str(server.port), str(proxy.port))
        with ray_route.connect(name, url, **options) as client:
            agents = [ray_route.PodAgent(name, "svc", n, redis_url=url).start() for n in range(3)]
            uids = [f"u{number}" for number in range(30)]
            before = client.compute_linked_pods(uids, "svc")
            proxy.cut()
            outage = time.monotonic() + 4
            while time.monotonic() < outage:
                with pytest.raises(ray_route.RouteError):
                    client.get_linked_pod_not_cache("u0", "svc", timeout=1)
            proxy.heal()
            after = eventually(lambda: links_or_none(client, uids), "links are answered again")
            assert {uid: link.pod for uid, link in after.items()} == {
                uid: link.pod for uid, link in before.items()
            }
            for agent in agents:
                agent.stop()
    end_router(name)


def links_or_none(client: Any, uids: list[str]) -> dict[str, ray_route.Link] | None:
    links = client.compute_linked_pods(uids, "svc")
    good = all(isinstance(link, ray_route.Link) for link in links.values())
    return links if good else None
