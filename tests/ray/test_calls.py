"""What users' methods return and raise, as their callers see it; arguments; ends of sessions."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
import ray
from helpers import eventually
from services import Counter
from talkers import AsyncTalker, FailsToStart, Talker

import ray_route
from ray_route import InvalidInputError, UnpicklableError

Call = Callable[..., Any]


@pytest.fixture(params=[Talker, AsyncTalker])
def talk(talkers: dict[type, str], request: pytest.FixtureRequest) -> str:
    return talkers[request.param]


def singly(client: Any, service: str, method: str, /, *args: Any, **kwargs: Any) -> Any:
    return client.call("ann", service, method, *args, **kwargs)


def in_a_batch(client: Any, service: str, method: str, /, *args: Any, **kwargs: Any) -> Any:
    (outcome,) = client.call_many([("ann", args, kwargs)], service, method)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def awaited(client: Any, service: str, method: str, /, *args: Any, **kwargs: Any) -> Any:
    async def run() -> Any:
        async with await ray_route.connect_async(client.namespace) as one:
            return await one.call("ann", service, method, *args, **kwargs)

    return asyncio.run(run())


ways = pytest.mark.parametrize("call", [singly, in_a_batch, awaited], ids=lambda way: way.__name__)


@ways
@pytest.mark.parametrize("method", ["count", "counting"])
def test_a_generator_is_an_error_that_says_so(
    client: Any, talk: str, call: Call, method: str
) -> None:
    with pytest.raises(InvalidInputError, match=f"{method}.* is a generator.*list"):
        call(client, talk, method, 3)


@ways
def test_a_method_that_is_not_there_is_named_with_those_that_are(
    client: Any, talk: str, call: Call
) -> None:
    with pytest.raises(InvalidInputError, match=r"'sey' is no method of .*Talker, .*fail, .*say"):
        call(client, talk, "sey", "hi")


@ways
def test_a_users_error_keeps_its_type_and_shows_the_users_lines_alone(
    client: Any, talk: str, call: Call
) -> None:
    with pytest.raises(KeyError) as caught:
        call(client, talk, "fail", "my fault")
    text = str(caught.value)
    assert text.endswith("KeyError: 'my fault'")
    assert "talkers.py" in text
    assert "raise KeyError(text)" in text
    assert "ray_route" not in text.replace("ray_route:", ""), text


@ways
def test_a_result_that_cant_be_pickled_says_so(client: Any, talk: str, call: Call) -> None:
    with pytest.raises(
        UnpicklableError, match=r"result.* of lock can't be pickled.*'_thread.lock'"
    ):
        call(client, talk, "lock")


@ways
def test_an_exception_that_cant_be_pickled_says_so(client: Any, talk: str, call: Call) -> None:
    with pytest.raises(UnpicklableError, match=r"exception.*LockedError.*can't be pickled"):
        call(client, talk, "fail_with_a_lock")


@ways
def test_references_are_resolved_and_users_keywords_are_theirs(
    client: Any, talk: str, call: Call
) -> None:
    there = ray.put("there")
    args, kwargs = call(client, talk, "echo", there, uid="u", service="s", method="m", other=there)
    assert args == ("there",)
    assert kwargs == {"uid": "u", "service": "s", "method": "m", "other": "there"}


def test_a_reference_that_fails_fails_its_own_call_alone(client: Any, talk: str) -> None:
    @ray.remote(num_cpus=0)
    def broken() -> None:
        raise OSError("no file")

    calls = [("ann", ("x",)), ("ann", (broken.remote(),)), ("bob", ("y",))]
    first, failed, last = client.call_many(calls, talk, "echo")
    assert (first, last) == ((("x",), {}), (("y",), {}))
    assert isinstance(failed, OSError)


def refuses() -> None:
    raise LookupError("no way")


class NotWritten:
    """Can't be pickled."""

    def __reduce__(self) -> Any:
        return refuses()


class NotRead:
    """Can be pickled, and not be read again."""

    def __reduce__(self) -> Any:
        return refuses, ()


@pytest.mark.parametrize("odd", [NotWritten(), NotRead()], ids=["written", "read"])
def test_an_argument_that_cannot_be_sent_fails_its_own_call_alone(
    client: Any, talk: str, odd: Any
) -> None:
    uids = [f"u{number}" for number in range(20)]
    calls = [(uid, (uid,)) for uid in uids]
    *outcomes, failed = client.call_many([*calls, ("odd", (odd,))], talk, "echo", timeout=60)
    assert outcomes == [((uid,), {}) for uid in uids]
    assert isinstance(failed, Exception)
    assert re.search(r"no way|No module named 'test_calls'", str(failed))


def test_what_is_no_call_is_refused(client: Any, talk: str) -> None:
    for wrong in ("ann", ("ann",), ("ann", ["x"]), ("ann", ("x",), ["y"])):
        with pytest.raises(InvalidInputError, match=r"must hold"):
            client.call_many([wrong], talk, "echo")


# Ends of sessions.


def test_a_removed_uid_is_released_and_its_load_falls_at_once(client: Any, deploy: Any) -> None:
    service = deploy(Counter, replicas=1, cpu_factor=0.0).service
    client.call("ann", service, "add", "ann")
    client.call("bob", service, "add", "bob")
    eventually(lambda: client.pods(service)[0].load == 2, "both are its load")
    assert client.remove("ann", service) is True
    assert client.pods(service)[0].load == 1
    assert client.get_linked_pod_not_cache("ann", service) is None
    assert client.remove("ann", service) is False
    assert client.call("ann", service, "add", "ann") == 1  # acquired anew


def test_a_removal_may_be_for_later(client: Any, deploy: Any) -> None:
    service = deploy(Counter, replicas=1).service
    client.call("ann", service, "add", "ann")

    async def later() -> bool:
        async with await ray_route.connect_async(client.namespace) as one:
            return await one.remove("ann", service, after_s=0.3)

    assert asyncio.run(later()) is True
    gone = lambda: client.get_linked_pod_not_cache("ann", service) is None  # noqa: E731
    eventually(gone, "its link has gone")
    with pytest.raises(InvalidInputError):
        client.remove("ann", service, after_s=-1)


# Pods that do not start.


def test_a_failing_constructor_is_named_with_what_it_raised(client: Any) -> None:
    with pytest.raises(ray_route.PodStartError, match=r"no such model: llama-99.*mend"):
        ray_route.deploy(FailsToStart, namespace=client.namespace, service="never", replicas=1)


def why_it_is_not_there(client: Any, **resources: float) -> str:
    """Return what is said of a pod that gets no node within 2 s, or longer on a busy machine."""
    for timeout in (2, 8, 32):
        with pytest.raises(ray_route.RouteTimeoutError) as caught:
            ray_route.deploy(
                Counter,
                namespace=client.namespace,
                service="never",
                replicas=1,
                ray_actor_options=resources,
                timeout=timeout,
            )
        if "no node has" in str(caught.value):  # else its actor had not been made by then
            break
    return str(caught.value)


def test_resources_that_no_node_has_are_named(client: Any) -> None:
    why = why_it_is_not_there(client, num_gpus=3)
    assert re.search(r"no node has GPU 3 .the most.*ray_actor_options", why), why


def test_resources_that_are_taken_are_named(client: Any) -> None:
    taker = ray.remote(num_cpus=8)(Counter).remote()
    ray.get(taker.pid.remote())
    try:
        assert "no node has CPU 8 free" in why_it_is_not_there(client, num_cpus=8)
    finally:
        ray.kill(taker)
