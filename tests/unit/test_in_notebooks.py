"""What a notebook shows of our values: tables in which nothing can be anything but text."""

from __future__ import annotations

from dataclasses import fields, replace
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import pytest

from ray_route.client.pods import Pods
from ray_route.client.sync_client import RouteClient
from ray_route.deployment import Deployment
from ray_route.model import Explanation, Life, Link, Pod, RoutingState, ServiceStatus
from ray_route.store.url import parse_url

EVIL = "<script>alert('&')</script>"
PASSWORD = "s3cret"
LINK = Link(0, 1, 7, persistent=False, lease_s=12.5)
POD = Pod(0, RoutingState.READY, Life.ALIVE, 2.0, 2, "node", EVIL, 1, 0.25)
EXPLANATION = Explanation("chat", "rooms", EVIL, 3, LINK, POD, 1.0, (EVIL, "placed"))
FACTS: dict[str, Any] = {field.name: "" for field in fields(ServiceStatus)}
STATUS = ServiceStatus(**{**FACTS, "service": "rooms", "problems": {1: EVIL}})


class Cells(HTMLParser):
    """What a browser would show, and the tags that it would obey."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, _: Any) -> None:
        self.tags.add(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def client() -> RouteClient:
    url = parse_url(f"redis://:{PASSWORD}@10.0.0.1:6379/0")
    namespace: Any = SimpleNamespace(name="chat", url=url, check_here=lambda: None)
    return RouteClient(SimpleNamespace(namespace=namespace, near=SimpleNamespace(get=None)))  # type: ignore[arg-type]


def deployment() -> Deployment:
    return Deployment(client()._session, "rooms")


SHOWN = {
    "link": (lambda: LINK, ["epoch", "7"]),
    "pod": (lambda: POD, ["READY", "alive", EVIL]),
    "pods": (lambda: Pods({0: POD, 1: replace(POD, pod=1)}), ["incarnation", "READY", EVIL]),
    "no pods": (Pods, ["Pods"]),
    "explanation": (lambda: EXPLANATION, [EVIL, "placed", "epoch", "heartbeat_age_s"]),
    "no link": (lambda: replace(EXPLANATION, link=None, pod=None), [EVIL, "None"]),
    "status": (lambda: STATUS, [f"1: {EVIL}", "generation"]),
    "client": (client, ["RouteClient", "chat", "False"]),
    "deployment": (deployment, ["Deployment", "rooms"]),
}


@pytest.mark.parametrize("what", SHOWN)
def test_it_is_a_table_and_all_of_it_is_text(what: str) -> None:
    make, texts = SHOWN[what]
    shown = Cells(make()._repr_html_())  # type: ignore[no-untyped-call]
    assert shown.tags <= {"table", "caption", "b", "thead", "tbody", "tr", "th", "td", "br"}
    assert not shown.open
    for text in texts:
        assert text in shown.texts


@pytest.mark.parametrize("what", ["client", "deployment"])
def test_no_password_is_shown(what: str) -> None:
    made = SHOWN[what][0]()  # type: ignore[no-untyped-call]
    assert PASSWORD not in made._repr_html_()
    assert PASSWORD not in repr(made)


def test_pods_are_a_dict_as_ever() -> None:
    assert Pods({0: POD}) == {0: POD}
    assert repr(Pods({0: POD})) == repr({0: POD})
