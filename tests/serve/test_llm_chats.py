"""Conversations with an LLM behind an OpenAI-style API find the replica whose cache knows them.

The model is a stand-in (`examples/llm_chats.py`), configured and called as `ray.serve.llm` does it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import unique_name
from ray import cloudpickle, serve
from serveapp import end_application
from served import sticky

import ray_route

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "llm_chats.py"
REPLICAS = 3


@pytest.fixture(scope="module")
def chats() -> Iterator[Any]:
    """The example, which replicas get by value: they can't import it."""
    spec = importlib.util.spec_from_file_location("llm_chats", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["llm_chats"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)
    yield module
    cloudpickle.unregister_pickle_by_value(module)
    del sys.modules["llm_chats"]


@pytest.fixture(scope="module")
def url(chats: Any, serve_url: str, directory: ray_route.RouteClient) -> Iterator[str]:
    """Its address. A replica would refuse what is not its own, so that none goes astray unseen."""
    name = unique_name()
    kwargs = {"namespace": directory.namespace, "session_id_from": chats.SESSIONS}
    router = sticky(on_stray="refuse", **kwargs)
    serve.run(chats.app(router, REPLICAS), name=name, route_prefix=f"/{name}")
    yield f"{serve_url}/{name}"
    end_application(name)


@pytest.mark.parametrize("field", ["prompt_cache_key", "user"])
def test_every_turn_of_a_conversation_finds_what_was_computed(
    chats: Any, url: str, field: str
) -> None:
    talks = [chats.converse(url, 3, **{field: f"{field} {number}"}) for number in range(9)]
    assert [len(met) for met, _ in talks] == [1] * 9
    assert [computed for _, computed in talks] == [3] * 9, "each question once, no answer"
    homes = Counter(next(iter(met)) for met, _ in talks)
    assert len(homes) == REPLICAS, "new conversations go where the fewest are"


def test_the_key_of_the_cache_comes_before_the_user_and_a_header_before_both(
    chats: Any, url: str, directory: ray_route.RouteClient
) -> None:
    names = [unique_name() for _ in range(3)]
    fields = {"user": names[0], "prompt_cache_key": names[1]}
    chats.ask(url, [{"role": "user", "content": "hello"}], **fields)
    header = {"x-session-id": names[2]}
    chats.ask(url, [{"role": "user", "content": "hello"}], headers=header, **fields)
    service = f"{url.rpartition('/')[2]}.Model"
    assert directory.batch_get_linked_pod(names, service).missing == names[:1]


def test_an_answer_is_streamed_word_by_word(chats: Any, url: str) -> None:
    answer, last = chats.ask(url, [{"role": "user", "content": "tea"}], user=unique_name())
    assert answer == "this is answer 0 to tea"
    assert last["usage"]["prompt_tokens"] == 1


def test_a_conversation_that_names_nothing_is_answered(chats: Any, url: str) -> None:
    assert chats.ask(url, [{"role": "user", "content": "tea"}])[0] == "this is answer 0 to tea"
