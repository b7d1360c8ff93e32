"""Where a request's session id is found, and what is refused."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_route.errors import ConfigError, InvalidInputError
from ray_route.model import check_uid
from ray_route.serve.answers import status
from ray_route.serve.replica_options import ReplicaOptions
from ray_route.serve.session_ids import InvalidSessionError, SessionIds, content_length, has_json


def scope(path: str = "/", query: bytes = b"", root: str = "", **headers: str) -> dict[str, Any]:
    """Make an ASGI scope as Serve's proxy does."""
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "root_path": root,
        "query_string": query,
        "headers": pairs,
    }


FOUND = [
    ("header:X-Room", scope(x_room="42"), "42"),
    ("header:x-room", scope(), None),
    ("header:x-room", scope(x_room=" "), None),
    ("cookie:sid", scope(cookie="a=1; sid=abc; b=2"), "abc"),
    ("cookie:sid", scope(cookie='sid="ab=c"'), "ab=c"),
    ("cookie:sid", scope(cookie="xsid=1; sid="), None),
    ("query:session", scope(query=b"a=1&session=r%20%C3%BC"), "r ü"),
    ("query:session", scope(query=b"session=&a=1"), None),
    ("path:/rooms/{session}", scope("/rooms/42/say"), "42"),
    ("path:/rooms/{session}", scope("/app/rooms/42", root="/app"), "42"),
    ("path:/rooms/{session}", scope("/rooms"), None),
    ("path:/rooms/{session}", scope("/xrooms/42"), None),
    ("path:/{tenant}/rooms/{session}/say", scope("/acme/rooms/42/say"), "42"),
    ("path:/{tenant}/rooms/{session}/say", scope("/acme/rooms/42/sayings"), None),
    ("path:/a.b/{session}", scope("/axb/42"), None),
]


@pytest.mark.parametrize(("source", "request_scope", "found"), FOUND)
def test_a_head_tells_the_session(source: str, request_scope: Any, found: str | None) -> None:
    assert SessionIds([source]).in_scope(request_scope) == found


BODIES = [
    ("json:user", {"user": "ann"}, "ann"),
    ("json:user", {"user": 42}, "42"),
    ("json:user", {"user": None}, None),
    ("json:user", {"user": ""}, None),
    ("json:user", {}, None),
    ("json:user", ["user"], None),
    ("json:metadata.session", {"metadata": {"session": "s"}}, "s"),
    ("json:metadata.session", {"metadata": "s"}, None),
    ("json:messages.0.id", {"messages": [{"id": "m"}]}, "m"),
    ("json:messages.1.id", {"messages": [{"id": "m"}]}, None),
]


@pytest.mark.parametrize(("source", "body", "found"), BODIES)
def test_a_body_tells_the_session(source: str, body: Any, found: str | None) -> None:
    assert SessionIds([source]).in_body(json.dumps(body).encode()) == found


def test_the_first_found_wins() -> None:
    ids = SessionIds(["cookie:sid", "query:s", "json:prompt_cache_key", "json:user"])
    assert ids.in_scope(scope(query=b"s=q", cookie="sid=c")) == "c"
    assert ids.in_scope(scope(query=b"s=q")) == "q"
    assert ids.in_scope(scope()) is None
    assert ids.in_body(b'{"user": "u", "prompt_cache_key": "k"}') == "k"
    assert ids.in_body(b'{"user": "u"}') == "u"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'"text"'])
def test_what_is_no_json_is_the_users_own_matter(body: bytes) -> None:
    assert SessionIds(["json:user"]).in_body(body) is None


BAD_HEADS = [
    ("header:x-room", scope(x_room="r" * 513)),
    ("cookie:sid", scope(cookie="sid=" + "r" * 513)),
    ("query:s", scope(query=b"s=%FF")),
    ("path:/{session}", scope("/" + "ü" * 257)),
]


@pytest.mark.parametrize(("source", "request_scope"), BAD_HEADS)
def test_a_bad_id_in_the_head_is_refused(source: str, request_scope: Any) -> None:
    with pytest.raises(InvalidSessionError, match=source.partition(":")[0]):
        SessionIds([source]).in_scope(request_scope)


def test_bytes_that_are_no_text_are_refused() -> None:
    odd = {**scope(), "headers": [(b"x-room", b"\xff")]}
    with pytest.raises(InvalidSessionError, match="UTF-8"):
        SessionIds(["header:x-room"]).in_scope(odd)


@pytest.mark.parametrize("value", [{}, [], 1.5, True, "r" * 513, "\ud800"])
def test_a_bad_id_in_the_body_is_refused(value: Any) -> None:
    with pytest.raises(InvalidSessionError, match="json:user"):
        SessionIds(["json:user"]).in_body(json.dumps({"user": value}).encode())


def test_a_refusal_is_an_input_error_and_survives_pickling() -> None:
    error = InvalidSessionError(argument="the session id", value="x", reason="is too long")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, InvalidInputError)
    assert (str(again), status(again)) == (str(error), 400)


@pytest.mark.parametrize(
    "sources",
    [
        "header:x",
        ["x-room"],
        ["header:"],
        ["body:user"],
        ["path:/rooms"],
        ["path:rooms/{session}"],
        ["json:user", "header:x"],
        [1],
    ],
)
def test_what_is_no_source_is_a_wrong_option(sources: Any) -> None:
    with pytest.raises(ConfigError, match="session_id_from"):
        SessionIds(sources)


@given(st.text(max_size=600), st.text(max_size=20))
def test_whatever_is_sent_is_an_id_or_nothing_or_refused(text: str, other: str) -> None:
    ids = SessionIds(["header:x-room", "cookie:sid", "path:/{session}", "query:s"])
    sent = {
        **scope("/" + text, other.encode(errors="replace")),
        "headers": [(b"x-room", other.encode(errors="surrogatepass")), (b"cookie", text.encode())],
    }
    try:
        found = ids.in_scope(sent)
    except InvalidSessionError:
        return
    assert found is None or check_uid(found)


def test_which_bodies_are_read() -> None:
    assert has_json(scope(content_type="application/json; charset=utf-8"))
    assert has_json(scope(content_type="Application/vnd.api+JSON"))
    assert not has_json(scope(content_type="multipart/form-data"))
    assert not has_json(scope())
    assert not has_json({**scope(content_type="application/json"), "type": "websocket"})
    assert content_length(scope(content_length="12")) == 12
    assert content_length(scope(content_length="x")) is None
    assert content_length(scope()) is None


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"on_stray": "ignore"}, "on_stray"),
        ({"patience_s": 0}, "patience_s"),
        ({"body_limit_bytes": "1MB"}, "body_limit_bytes"),
        ({"session_id_from": ["json:user"]}, "session_id_from"),
        ({"session_id_from": ["json:user"], "on_stray": "refuse"}, "session_id_from"),
    ],
)
def test_wrong_options_of_replicas_are_refused(options: Any, wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        ReplicaOptions.of(options)


def test_options_of_replicas_are_told_from_those_of_the_namespace() -> None:
    options = ReplicaOptions.of({"on_stray": "forward", "ttl_s": 60, "patience_s": 1.5})
    assert (options.on_stray, options.patience_s, options.config) == ("forward", 1.5, {"ttl_s": 60})


class Completion:
    """A request as an LLM's ingress hands it on: fields are attributes."""

    user = "ann"
    number = 42
    nothing = None
    prompt_cache_key = "x" * 600
    metadata: dict[str, Any] = {"session": "s-1"}  # noqa: RUF012 - nobody writes
    messages: list[Any] = [{"id": "m-0"}]  # noqa: RUF012 - nobody writes

    def method(self) -> str:
        return "never asked"


@pytest.mark.parametrize(
    ("sources", "args", "found"),
    [
        (["argument:user"], (Completion(), "more"), "ann"),
        (["argument:user"], ({"user": "bob"},), "bob"),
        (["argument:nothing", "argument:user"], (Completion(),), "ann"),
        (["argument:number"], (Completion(),), "42"),
        (["argument:prompt_cache_key"], (Completion(),), "x" * 600),
        (["argument:metadata.session"], (Completion(),), "s-1"),
        (["argument:messages.0.id"], (Completion(),), "m-0"),
        (["argument:method"], (Completion(),), None),
        (["argument:title"], ("a text",), None),
        (["argument:user"], (), None),
        (["argument:nobody", "json:user"], (Completion(),), None),
    ],
)
def test_the_first_argument_of_a_call_tells_the_session(
    sources: list[str], args: Any, found: str | None
) -> None:
    assert SessionIds(sources).in_argument(args) == found


def test_an_argument_that_is_no_id_is_refused() -> None:
    with pytest.raises(InvalidSessionError, match="argument:messages"):
        SessionIds(["argument:messages"]).in_argument((Completion(),))


def test_who_looks_at_arguments_alone_looks_at_no_http_request() -> None:
    assert not SessionIds(["argument:user"])
    assert ReplicaOptions(session_id_from=["argument:user"]).on_stray == "serve"
    assert SessionIds(["argument:user", "header:x-room"])


def test_a_text_in_a_body_has_nothing_within_it() -> None:
    assert SessionIds(["json:user.real"]).in_body(b'{"user": 1}') is None
