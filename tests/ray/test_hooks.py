"""A uid is nobody's until its release has ended: hooks run once, alone, to their end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from diaries import AsyncDiary, Book, Diary
from helpers import end_router, eventually, unique_name

import ray_route
from ray_route import PodUnavailableError
from ray_route.testing.faults import frozen_pod

pytestmark = pytest.mark.slow

Deploy = Callable[..., ray_route.Deployment]

BOTH = pytest.mark.parametrize("cls", [Diary, AsyncDiary])


@dataclass
class Diaries:
    """A service of diaries, and their book."""

    client: ray_route.RouteClient
    deployment: ray_route.Deployment
    book: Book

    @property
    def service(self) -> str:
        return self.deployment.service

    def add(self, uid: str, seconds: float = 0.0, **how: Any) -> int:
        how = {"timeout": 20, **how}
        return self.client.call(uid, self.service, "add", uid, seconds, **how)

    def owner(self, uid: str) -> int:
        return self.client.compute_linked_pod(uid, self.service).pod

    def other(self, uid: str) -> int:
        """Return a pod to which a uid could move."""
        owner, ready = self.owner(uid), ray_route.RoutingState.READY
        pods = self.client.pods(self.service)
        return next(index for index, pod in pods.items() if pod.state is ready and index != owner)


@pytest.fixture(scope="module")
def shared(
    client: ray_route.RouteClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[type, Diaries]]:
    """A service of each kind for all tests that leave it as it was; the last tests end them."""
    with ExitStack() as ends:
        kept = {}
        for cls, replicas in ((Diary, 2), (AsyncDiary, 3)):
            book = Book(str(tmp_path_factory.mktemp(cls.__name__)))
            options = {"namespace": client.namespace, "service": cls.__name__}
            deployment = ray_route.deploy(
                cls, replicas=replicas, kwargs={"folder": str(book.folder)}, **options
            )
            ends.callback(deployment.shutdown)
            kept[cls] = Diaries(client, deployment, book)
        yield kept


@pytest.fixture
def u() -> str:
    return unique_name()


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(str(tmp_path))


class Caller:
    """Calls a uid again and again, as fast as it is answered."""

    def __init__(self, add: Callable[[str], int], uid: str) -> None:
        self.counts: list[int] = []
        self.errors: list[Exception] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(add, uid))
        self._thread.start()

    def _run(self, add: Callable[[str], int], uid: str) -> None:
        while not self._stop.is_set():
            try:
                self.counts.append(add(uid))
            except Exception as error:  # noqa: BLE001 - the test looks at them
                self.errors.append(error)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@BOTH
def test_a_mover_that_gives_up_leaves_the_uid_as_it_is_after_its_hook(
    shared: dict[type, Diaries], u: str, cls: type
) -> None:
    kept = shared[cls]
    client, book = kept.client, kept.book
    book.slow("release", u, 3.0)
    assert kept.add(u) == 1
    with Caller(kept.add, u) as caller:
        while not book.count("release", u):  # on a busy machine it has not begun, and is kept
            with pytest.raises(PodUnavailableError, match="kept the uid"):
                client.move(u, kept.service, kept.other(u), timeout=2)
        eventually(lambda: book.count("acquire-end", u) == 2, "it is served again")
        reached = len(caller.counts)
        eventually(lambda: len(caller.counts) > reached + 3, "calls go on")
    book.slow("release", u, 0.0)
    assert not caller.errors
    assert caller.counts == list(range(2, len(caller.counts) + 2)), "no call is lost"
    assert book.faults(u) == []
    assert book.count("release", u) == 1


def test_an_async_on_acquire_may_take_longer_than_any_limit_and_runs_once(
    shared: dict[type, Diaries], u: str
) -> None:
    kept, another = shared[AsyncDiary], f"{u}-2"
    for uid in (u, another):
        kept.book.slow("acquire", uid, 3.0)
    with ThreadPoolExecutor(4) as pool:
        early = [pool.submit(kept.add, u, timeout=1) for _ in range(3)]
        late = pool.submit(kept.add, u, timeout=20)
        for call in early:
            with pytest.raises(ray_route.RouteTimeoutError):
                call.result()
        assert late.result() >= 1
    assert kept.book.count("acquire", u) == 1
    assert kept.add(another, timeout=20) == 1, "others are acquired as well"
    for uid in (u, another):
        kept.book.slow("acquire", uid, 0.0)


def test_a_cancelled_caller_of_an_async_on_acquire_leaves_nothing_behind(
    shared: dict[type, Diaries], u: str
) -> None:
    kept = shared[AsyncDiary]
    client, service, book = kept.client, kept.service, kept.book
    book.slow("acquire", u, 1.0)
    link = client.compute_linked_pod(u, service)
    pod = client.actor(u, service)
    header = [u, link.epoch, link.incarnation, "add"]
    ref = pod._ray_route_call.remote(header, u)
    eventually(lambda: book.count("acquire", u), "its on_acquire runs")
    ray.cancel(ref, recursive=False)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(ref, timeout=60)
    eventually(lambda: book.count("acquire-end", u), "on_acquire goes on to its end")
    target = kept.other(u)
    assert client.move(u, service, target, timeout=60).pod == target
    assert book.count("release-end", u) == 1
    book.slow("acquire", u, 0.0)


def test_hooks_of_a_class_whose_calls_take_turns_take_turns_with_them(
    shared: dict[type, Diaries], u: str
) -> None:
    kept = shared[Diary]
    client, service = kept.client, kept.service
    uids = [f"{u}-{number}" for number in range(20)]
    assert {kept.add(uid) for uid in uids} == {1}
    here = [uid for uid in uids if kept.owner(uid) == 0]
    looking = partial_call(client, here[0], service, "add_while_looking", here[0], 1.5)
    for uid in here[1:]:
        client.move(uid, service, 1, timeout=20)
    assert looking.result(20) == 2
    assert all(kept.book.faults(uid) == [] for uid in uids)


def partial_call(client: Any, *args: Any) -> Any:
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(client.call, *args, timeout=30)
    finally:
        pool.shutdown(wait=False)


@pytest.fixture(scope="module")
def quick(ray_session: None) -> Iterator[ray_route.RouteClient]:
    """A client of a namespace in which unused links end soon."""
    namespace = unique_name()
    # Not sooner: a machine that stops all for a second or two must not end a link in use.
    options = {"ttl_s": 6.0, "margin_s": 1.2, "heartbeat_s": 0.5, "pod_lease_s": 5.0}
    with ray_route.connect(namespace, **options) as client:
        yield client
    end_router(namespace)


@BOTH
def test_a_backlog_of_idle_uids_ends_no_link_before_its_hook(
    quick: ray_route.RouteClient, book: Book, cls: type
) -> None:
    service = cls.__name__
    options = {"namespace": quick.namespace, "service": service, "replicas": 1}
    how = {"folder": str(book.folder), "release_s": 0.15}
    uids = [f"u{number}" for number in range(30)]
    with ray_route.deploy(cls, kwargs=how, **options):

        def add(uid: str) -> int:
            return quick.call(uid, service, "add", uid, timeout=20)

        assert {add(uid) for uid in uids} == {1}
        eventually(lambda: book.count("release-end") >= 10, "idle uids are given up")
        assert {add(uid) for uid in uids} == {2}, "and come back with what was saved"
        eventually(
            lambda: book.count("release-end") == book.count("acquire-end"), "until all are idle", 60
        )
    assert [fault for uid in uids for fault in book.faults(uid)] == []
    assert book.count("lost") == 0


def test_a_scheduled_removal_ends_the_link_after_the_hook(
    shared: dict[type, Diaries], u: str
) -> None:
    kept = shared[Diary]
    book = kept.book
    book.slow("release", u, 0.5)
    assert kept.add(u) == 1
    # It serves no calls, it only says what is to go.
    agent = ray_route.PodAgent(kept.client.namespace, kept.service, None).start()
    agent.set_routing_state("DENY_NEW")
    try:
        assert agent.remove_linked_pod(u, after_s=1.0)
        with Caller(kept.add, u) as caller:
            eventually(lambda: book.count("acquire", u) == 2, "it is acquired anew")
            reached = len(caller.counts)
            eventually(lambda: len(caller.counts) > reached, "calls go on")
    finally:
        agent.stop()
    book.slow("release", u, 0.0)
    assert not caller.errors
    assert caller.counts == list(range(2, len(caller.counts) + 2))
    assert book.faults(u) == []


def test_a_hook_over_the_limit_of_its_deployment_is_ended(
    client: ray_route.RouteClient, deploy: Deploy, book: Book
) -> None:
    how = {"folder": str(book.folder), "release_s": 120.0}
    kept = Diaries(client, deploy(AsyncDiary, 2, kwargs=how, release_s=0.5), book)
    assert kept.add("ann") == 1
    target = kept.other("ann")
    assert client.move("ann", kept.service, target, timeout=60).pod == target
    assert book.count("release-end", "ann") == 1
    assert book.load("ann") == 0, "it was ended before it had saved"


def test_a_pod_told_to_end_waits_for_no_hook_past_its_grace(
    client: ray_route.RouteClient, deploy: Deploy, book: Book
) -> None:
    how = {"folder": str(book.folder), "release_s": 120.0}
    service = deploy(AsyncDiary, 1, kwargs=how, grace_s=2.0).service
    client.call("ann", service, "add", "ann")
    pid = client.call("ann", service, "pid")
    told_at = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "its process ends", 60)
    assert book.count("release", "ann") == 1
    assert book.count("release-end", "ann") == 0, "the grace was over before"
    # With the default of 20 s the drain alone may take 12 s, and the hooks the rest.
    print(f"ended after {time.monotonic() - told_at:.1f} s")
    context = ray.get_runtime_context()
    logs = Path(context.get_temp_dir()) / context.get_session_name() / "logs"
    told = f"pod 0 of {service} ends before 1 uids were released, ['ann'] among them"
    assert any(told in path.read_text(errors="replace") for path in logs.glob(f"worker-*{pid}.*"))


def test_an_agent_that_stops_runs_every_release_hook(
    client: ray_route.RouteClient,
) -> None:
    acquired: list[str] = []
    released: list[str] = []
    service = unique_name()
    agent = ray_route.PodAgent(
        client.namespace, service, 0, on_acquire=acquired.append, on_release=released.append
    ).start()
    for number in range(20):
        link = client.compute_linked_pod(f"u{number}", service)
        agent.admit(f"u{number}", link.epoch, link.incarnation)
    assert agent.stop() == []
    assert sorted(released) == sorted(acquired)
    assert len(released) == 20


@BOTH
def test_a_pod_told_to_end_with_nobody_to_take_over_releases_all_it_holds(
    client: ray_route.RouteClient, deploy: Deploy, book: Book, cls: type
) -> None:
    how = {"folder": str(book.folder), "release_s": 0.5 if cls is AsyncDiary else 0.0}
    kept = Diaries(client, deploy(cls, 1, kwargs=how), book)
    service, add = kept.service, kept.add
    uids = [f"u{number}" for number in range(60)]
    assert {add(uid) for uid in uids} == {1}
    pid = client.call(uids[0], service, "pid")
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: book.count("release-end") == len(uids), "every hook has run")
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "and the process ends")
    alive = ray_route.Life.ALIVE
    eventually(lambda: client.pods(service)[0].life is alive, "it is made again")
    assert {add(uid, timeout=40, idempotent=True) for uid in uids} == {2}
    assert [fault for uid in uids for fault in book.faults(uid)] == []


def test_what_a_pod_lost_is_told_and_not_saved(ray_session: None, book: Book) -> None:
    namespace = unique_name()
    options = {"namespace": namespace, "service": "svc", "replicas": 2}
    how = {"folder": str(book.folder)}
    with (
        ray_route.connect(namespace, pod_lease_s=2.0, heartbeat_s=0.4) as client,
        ray_route.deploy(Diary, kwargs=how, **options),
    ):
        assert client.call("ann", "svc", "add", "ann") == 1
        with frozen_pod(client, "svc", client.compute_linked_pod("ann", "svc").pod) as pid:
            assert client.call("ann", "svc", "add", "ann", idempotent=True, timeout=20) == 1
        eventually(lambda: book.count("lost", "ann") == 1, "it is told")
        eventually(lambda: not Path(f"/proc/{pid}").exists(), "and ends")
        assert client.call("ann", "svc", "add", "ann", timeout=20) == 2
        assert book.count("release", "ann") == 0
    end_router(namespace)


# The last ones, since they end what others share.


def test_an_endless_call_stalls_nobody_elses_move(shared: dict[type, Diaries], u: str) -> None:
    kept = shared[AsyncDiary]
    client, service, book = kept.client, kept.service, kept.book
    uids = [f"{u}-{number}" for number in range(30)]
    assert {kept.add(uid) for uid in uids} == {1}
    here = [uid for uid in uids if kept.owner(uid) == 0]
    busy = partial_call(client, here[0], service, "add", here[0], 6.0)
    eventually(lambda: book.count("call", here[0]) == 2, "the long call runs")
    drain = client.drain(service, 0, 30)
    for progress in drain:
        if progress.left <= 1:
            break
    assert not busy.done(), "idle uids move at once"
    assert {kept.add(uid) for uid in here[1:]} == {2}
    assert busy.result(20) == 2, "the long call is not harmed"
    *_, last = drain
    assert last.problem is None
    assert all(book.faults(uid) == [] for uid in uids)


@BOTH
def test_a_drain_waits_for_hooks_that_are_slower_than_its_patience(
    shared: dict[type, Diaries], u: str, cls: type
) -> None:
    kept = shared[cls]
    uids = [f"{u}-{number}" for number in range(6)]
    assert [kept.add(uid) for uid in uids] == [1] * 6
    drained = kept.owner(uids[0])
    on_it = [uid for uid in uids if kept.owner(uid) == drained]
    for uid in on_it:
        kept.book.slow("release", uid, 3.0)
    *_, last = kept.client.drain(kept.service, drained, 60)
    assert (last.done, last.problem, last.left) == (True, None, 0)
    for uid in on_it:
        kept.book.slow("release", uid, 0.0)
    assert [kept.add(uid) for uid in uids] == [2] * 6, "what was saved is found again"
    for uid in on_it:
        assert kept.book.count("release", uid) == 1
        assert kept.book.faults(uid) == []


@BOTH
def test_a_shutdown_runs_every_release_hook(shared: dict[type, Diaries], u: str, cls: type) -> None:
    kept = shared[cls]
    uids = [f"{u}-{number}" for number in range(40)]
    for uid in uids:
        kept.add(uid)
    kept.deployment.shutdown()
    events = kept.book.events()
    acquired, released = (
        sorted(event.uid for event in events if event.what == what)
        for what in ("acquire-end", "release-end")
    )
    assert released == acquired
    assert set(uids) < set(released)
