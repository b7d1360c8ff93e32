"""Whom the live page is served to, and how it says what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pages import get, served

from ray_route.cli.cluster import UnknownNameError
from ray_route.cli.page.server import PageServer
from ray_route.cli.page.views import Views
from ray_route.errors import InvalidInputError, RouterUnavailableError

FILES = ("", "page.css", "page.js", "parts.js", "flights.js")


class Said(Views):
    """Views that say what they were asked, or fail as they are told."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def state(self, service: str | None, router: int, count: int) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        return {"asked": [service, router, count]}

    def explain(self, uid: str) -> dict[str, Any]:
        return {"asked": uid}


@pytest.fixture(scope="module")
def views() -> Said:
    return Said()


@pytest.fixture(scope="module")
def server(views: Said) -> Iterator[PageServer]:
    with served(views) as running:
        yield running


@pytest.mark.parametrize("name", [*FILES, "state", "explain?uid=ann"])
def test_without_its_token_nothing_is_served(server: PageServer, name: str) -> None:
    assert get(server.url + name).status == 200
    root = server.url.rsplit("/", 2)[0]
    for wrong in (f"{root}/{name}", f"{root}/wrong/{name}", f"{server.url[:-2]}/{name}"):
        answer = get(wrong)
        assert (answer.status, list(answer.document)) == (403, ["error"])


def test_no_two_tokens_are_alike() -> None:
    with served(Said()) as one, served(Said()) as other:
        assert one.url.split("/")[3] != other.url.split("/")[3]
        assert len(one.url.split("/")[3]) >= 32


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example:1", ""]
)
def test_a_name_from_elsewhere_that_leads_here_is_refused(server: PageServer, host: str) -> None:
    answer = get(server.url + "state", Host=host)
    assert (answer.status, list(answer.document)) == (421, ["error"])


@pytest.mark.parametrize("host", ["localhost:8300", "127.0.0.1", "[::1]:8300", "localhost"])
def test_a_tunnel_may_have_any_port(server: PageServer, host: str) -> None:
    assert get(server.url + "state", Host=host).status == 200


def test_it_listens_on_the_loopback_address_alone(server: PageServer) -> None:
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed(server: PageServer, method: str) -> None:
    assert get(server.url + "state", method).status == 501


def test_a_browser_is_told_to_load_nothing_from_elsewhere(server: PageServer) -> None:
    for name in FILES:
        answer = get(server.url + name)
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in answer.text


def test_what_is_asked_arrives(server: PageServer) -> None:
    url = server.url + "state?service=rooms&router=7&count=3"
    assert get(url).document == {"asked": ["rooms", 7, 3]}
    assert get(server.url + "state").document == {"asked": [None, 0, 0]}
    assert get(server.url + "explain?uid=a%26b%2F%C3%A9").document == {"asked": "a&b/é"}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidInputError(argument="uid", value="", reason="must not be empty"), 400),
        (UnknownNameError("service", "x", ["rooms"]), 404),
        (RouterUnavailableError(reason="there is none", namespace="game"), 503),
        (TimeoutError("late"), 503),
        (RuntimeError("broken"), 500),
    ],
)
def test_an_error_is_never_an_empty_page(
    server: PageServer, views: Said, error: Exception, status: int
) -> None:
    views.error = error
    answer = get(server.url + "state")
    views.error = None
    assert answer.status == status
    assert str(error).partition("\n")[0] in answer.document["error"]


@pytest.mark.parametrize("query", ["state?count=much", "state?router=1e3"])
def test_a_question_that_makes_no_sense_is_the_askers(server: PageServer, query: str) -> None:
    assert get(server.url + query).status == 400


def test_there_is_no_way_to_other_files(server: PageServer) -> None:
    for name in ("views.py", "../server.py", "page.html", "..%2f..%2fpyproject.toml"):
        assert get(server.url + name).status == 404
