"""Errors of calls that nobody waits for are no news: Ray would print each, with its traceback."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from deploying import driver
from helpers import own_namespace

from ray_route.store.embedded import EmbeddedServer

pytestmark = pytest.mark.slow

REPORT = """
import ray
from helpers import eventually, router_handle
from ray_route.store.embedded import EmbeddedServer
with EmbeddedServer() as server:
    agent = ray_route.PodAgent(namespace, "svc", 0, redis_url=server.url, ttl_s=2.0, margin_s=0.2)
    agent.start()
    client = ray_route.connect(namespace, redis_url=server.url)
    epoch = client.compute_linked_pod("u", "svc").epoch
uses = client._session._uses
uses.note("svc", {"u": epoch})
eventually(lambda: not uses._used, "the use is reported, as ever")
for _ in range(2):  # by then the router has failed at that, too
    try:
        ray.get(router_handle(namespace).report_use.remote("svc", {"u": epoch}))
    except ray_route.StoreUnavailableError:
        print("the store is away")
client.close()
try:
    agent.stop()
except ray_route.StoreUnavailableError:
    pass
"""
LATE = """
import logging, ray, time
from pathlib import Path
from helpers import eventually
from ray_route.runtime.unseen import answer_of, seen
here, complaints = Path(folder), []
class Complaints(logging.Handler):
    def emit(self, record):
        complaints.append(record.getMessage())
logging.getLogger("ray._private.worker").addHandler(Complaints())
@ray.remote(num_cpus=0)
def fails(name, gate):
    while not (here / gate).exists():
        time.sleep(0.02)
    (here / name).touch()
    raise LookupError(f"nobody wants {name}")
try:
    answer_of(fails.remote("late", "gate"), 0.1)
except ray.exceptions.GetTimeoutError:
    seen(fails.remote("alone", "gate"))
(here / "gate").touch()
eventually(lambda: (here / "late").exists() and (here / "alone").exists(), "both have failed")
fails.remote("dropped", "gate")
eventually(lambda: complaints, "Ray complains of what is dropped")
"""

GONE = """
import ray, sys, threading
from helpers import eventually
from ray._private.worker import global_worker
from ray_route.clock import Deadline
from ray_route.runtime.unseen import answer_of, arrived
from ray_route.runtime.waiting import Remote
class SlowToEnd:
    # As Ray's worker, with more time between its end and the moment when nobody asks it any more.
    def __init__(self, worker):
        self.worker = worker
    def __getattr__(self, name):
        return getattr(self.worker, name)
    def shutdown_driver(self):
        self.worker.shutdown_driver()
        waiting.join(60)  # it drops its references before nobody asks this any more
@ray.remote(num_cpus=0)
def stays():
    threading.Event().wait()
BEGIN
begun = threading.Event()
def waits():
    begun.set()
    WAIT
waiting = threading.Thread(target=waits, daemon=True)
waiting.start()
begun.wait()
def stack():
    frame = sys._current_frames()[waiting.ident]
    while frame is not None:
        if frame.f_code.co_filename.endswith("ray/_private/worker.py"):
            yield frame.f_code.co_name
        frame = frame.f_back
eventually(lambda: {"get_objects", "wait"} & set(stack()), "it waits")
global_worker.core_worker = SlowToEnd(global_worker.core_worker)
"""

# It ends with its agent in force, by whose long polls some thread always waits for an answer.
BY_HAND = """
import sys, threading
from helpers import eventually
agent = ray_route.PodAgent(namespace, "svc", 0, redis_url=url)
agent.start()
(loop,) = [each for each in threading.enumerate() if each.name == "ray_route-commands"]
def files():
    frame = sys._current_frames()[loop.ident]
    while frame is not None:
        yield frame.f_code.co_filename
        frame = frame.f_back
def waits():
    stack = list(files())
    return "namespace.py" in str(stack) and "threading.py" in stack[0]
eventually(waits, "it waits in a lock of Python's, and not in Ray")
"""

DEPLOYED = """
ray_route.deploy(services.Counter, namespace=namespace, service='svc', replicas=1)
pods = ray_route.connect(namespace).service('svc')
"""


def ran(begun: subprocess.Popen[str]) -> str:
    out, err = begun.communicate(timeout=250)
    assert begun.returncode == 0, err
    return out + err


def test_a_report_of_use_that_fails_is_printed_nowhere(ray_session: None) -> None:
    with own_namespace() as namespace:
        said = ran(driver(REPORT, namespace))
    assert said.count("the store is away") == 2
    assert "Unhandled error" not in said


def test_only_of_what_is_dropped_ray_complains(ray_session: None, tmp_path: Path) -> None:
    said = ran(driver(LATE, "none", folder=str(tmp_path)))
    assert "nobody wants dropped" in said
    assert "nobody wants late" not in said
    assert "nobody wants alone" not in said


@pytest.mark.parametrize(
    "wait",
    [
        "answer_of(stays.remote(), 60.0)",
        "arrived([stays.remote()], 60.0)",
        "Remote(stays.remote(), 'an answer').wait(Deadline.after(60.0))",
    ],
)
def test_a_program_that_ends_while_a_thread_waits_ends_well(ray_session: None, wait: str) -> None:
    ran(driver(GONE.replace("BEGIN", "ray.get(ray.put(1))").replace("WAIT", wait), "none"))


def test_a_program_that_ends_while_a_thread_calls_a_pod_ends_well(ray_session: None) -> None:
    wait = "pods['u'].sleep.remote(60).result()"
    with own_namespace() as namespace:
        ran(driver(GONE.replace("BEGIN", DEPLOYED).replace("WAIT", wait), namespace))


def test_a_program_that_ends_with_an_agent_in_force_ends_well(ray_session: None) -> None:
    with own_namespace() as namespace, EmbeddedServer() as server:
        said = ran(driver(BY_HAND, namespace, url=server.url))
    assert "no commands" not in said
    assert "Traceback" not in said
