"""The live page as a browser shows it, on documents that are written here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from helpers import eventually
from pages import chromium, served
from playwright.sync_api import ConsoleMessage, Error, Page, expect

from ray_route.cli.page.server import PageServer
from ray_route.cli.page.views import Views
from ray_route.errors import RouterUnavailableError
from ray_route.model import HotUid, Life, Pod, RoutingState
from ray_route.protocol.decided import Decided, Decision

pytestmark = pytest.mark.slow

NOW_US = 1_800_000_000_000_000
NASTY = '<img src=x onerror="document.title=1">'
WAIT_MS = 30_000
expect.set_options(timeout=WAIT_MS)


def pod(index: int, **facts: Any) -> Pod:
    usual: dict[str, Any] = {
        "pod": index,
        "state": RoutingState.READY,
        "life": Life.ALIVE,
        "load": 4.0,
        "links": 4,
        "node": "cafe" * 14,
        "actor": f"ray_route:game:rooms:{index}",
        "incarnation": NOW_US - 7_200_000_000,
        "heartbeat_age_s": 0.5,
    }
    return Pod(**{**usual, **facts})


class Scripted(Views):
    """Tells what a test has written."""

    def __init__(self) -> None:
        self.pods = {"rooms": [pod(0), pod(1, load=8.0, links=8), pod(2)]}
        self.decisions: list[Decision] = []
        self.hottest: list[HotUid] = []
        self.error: Exception | None = None
        self.router = 5

    def decide(self, what: str, uid: str, pod: int, source: int | None = None) -> None:
        self.decisions.append(Decision(time.time(), "rooms", uid, what, pod, source))

    def state(self, service: str | None, router: int, count: int) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        new = self.decisions[count if router == self.router else 0 :]
        return {
            "at": time.time(),
            "time_us": NOW_US,
            "namespace": "game",
            "services": [*self.pods],
            "pods": {service: self.pods[service]} if service else self.pods,
            "hottest": self.hottest if service else [],
            "decided": Decided(self.router, len(self.decisions), new),
        }

    def explain(self, uid: str) -> dict[str, Any]:
        told = [str(one) for one in self.decisions if one.uid == uid]
        if not told:
            return {"uid": uid, "services": {}, "notice": ""}
        held = self.decisions[-1].pod
        link = {"pod": held, "incarnation": 1, "epoch": 77, "persistent": False}
        about = {"link": link, "pod": self.pods["rooms"][held], "age_s": 3.0, "decisions": told}
        return {"uid": uid, "services": {"rooms": about}, "notice": ""}


# The page asks each second: here it does so ten times as often.
QUICK = "const usual = setInterval; window.setInterval = (what, ms) => usual(what, ms / 10);"


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    with served(Scripted()) as running:
        yield running


@pytest.fixture(scope="module")
def window() -> Iterator[Page]:
    with chromium() as browser:
        opened = browser.new_page()
        opened.add_init_script(QUICK)
        yield opened


@pytest.fixture
def views(server: PageServer) -> Scripted:
    server.views = Scripted()
    return server.views


@pytest.fixture
def page(window: Page, server: PageServer, views: Scripted) -> Iterator[Page]:
    """The page, opened anew; what goes wrong in it, or is refused it, fails the test."""
    wrong: list[str] = []

    def on_error(error: Error) -> None:
        wrong.append(str(error))

    def on_console(said: ConsoleMessage) -> None:
        wrong.extend([said.text] * ("Policy" in said.text))

    window.on("pageerror", on_error)
    window.on("console", on_console)
    window.goto(server.url)
    expect(window.locator(".pod")).to_have_count(3)
    yield window
    window.remove_listener("pageerror", on_error)
    window.remove_listener("console", on_console)
    assert wrong == []


def test_pods_are_shown_with_load_state_and_age(page: Page, views: Scripted) -> None:
    card = page.locator(".pod").nth(1)
    shown = " ".join(card.inner_text().split())
    assert shown == "pod 1 READY 8 load uids 8 age 2 h heartbeat 0.5 s ago node cafecafe"
    expect(page.locator("#sum-pods")).to_have_text("3")
    expect(page.locator("#sum-links")).to_have_text("16")
    views.pods["rooms"][1] = pod(1, life=Life.GONE, links=0)
    views.pods["rooms"][2] = pod(2, state=RoutingState.DENY_NEW)
    expect(page.locator(".pod.gone .badge")).to_have_text("gone")
    expect(page.locator(".pod.DENY_NEW .badge")).to_have_text("DENY_NEW")
    expect(page.locator("#sum-pods")).to_have_text("2")


def test_uids_are_seen_on_their_way(page: Page, views: Scripted) -> None:
    page.evaluate(
        """() => { window.flights = 0; new MutationObserver((all) => all.forEach((one) =>
        one.addedNodes.forEach((node) => { window.flights += node.className === "flight moved"; })
        )).observe(document.getElementById("sky"), {childList: true}); }"""
    )
    views.decide("moved", "ann", 1, 0)
    views.decide("moved", "bob", 1, 0)
    rows = page.locator("#history li")
    expect(page.locator("#history .uid", has_text="bob")).to_have_count(1)
    assert "pod 0 → 1" in rows.all_inner_texts()[-1]
    eventually(lambda: page.evaluate("window.flights") == 2, "a dot for each")
    expect(page.locator("#sum-moved")).to_have_text("2")
    expect(page.locator("#sky > *")).to_have_count(0)


def test_who_wants_no_motion_gets_none(page: Page, views: Scripted) -> None:
    page.emulate_media(reduced_motion="reduce")
    page.evaluate(
        """() => { window.marks = 0; new MutationObserver(() => { window.marks += 1; }
        ).observe(document.getElementById("sky"), {childList: true}); }"""
    )
    views.decide("moved", "ann", 1, 0)
    expect(page.locator("#history li")).to_have_count(1)
    assert page.evaluate("window.marks") == 0
    page.emulate_media(reduced_motion="no-preference")


def test_a_router_that_begins_anew_is_followed(page: Page, views: Scripted) -> None:
    views.decide("placed", "ann", 0)
    expect(page.locator("#history li")).to_have_count(1)
    views.router, views.decisions = 6, []
    views.decide("relinked", "ann", 2, 0)
    expect(page.locator("#history li")).to_have_count(2)
    assert "pod 0 → 2" in page.locator("#history li").first.inner_text()


def test_a_uid_is_found_explained_and_kept_up_to_date(page: Page, views: Scripted) -> None:
    views.decide("placed", "ann", 0)
    page.get_by_label("uid", exact=True).fill("ann")
    page.get_by_role("button", name="Find").click()
    answer = page.locator("#answer")
    expect(answer).to_contain_text("pod 0, temporary, epoch 77, set 3.0 s ago")
    expect(answer.locator("li")).to_have_count(1)
    expect(page.locator(".pod.found h4")).to_have_text("pod 0")
    expect(page.locator("#history li")).to_have_count(1)
    views.decide("moved", "ann", 2, 0)
    expect(page.locator(".pod.found h4")).to_have_text("pod 2")
    expect(answer.locator("li").first).to_contain_text("moved from pod 0: pod 2")
    page.get_by_label("uid", exact=True).fill("nobody")
    page.get_by_role("button", name="Find").click()
    expect(answer).to_contain_text("has no link")
    expect(page.locator(".pod.found")).to_have_count(0)


def test_a_uid_that_looks_like_markup_is_text(page: Page, views: Scripted) -> None:
    views.decide("placed", NASTY, 0)
    button = page.locator("#history .uid")
    expect(button).to_have_text(NASTY)
    button.click()
    expect(page.locator("#answer h3").first).to_have_text(NASTY)
    assert page.locator("img").count() == 0
    assert page.title() == "game · ray_route"


def test_what_is_old_says_so_and_why(page: Page, views: Scripted) -> None:
    expect(page.locator("#when")).to_contain_text("live")
    views.error = RouterUnavailableError(reason="it is on fire", namespace="game")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("it is on fire")
    expect(page.locator("#when")).to_contain_text("as of")
    expect(page.locator(".pod")).to_have_count(3)
    views.error = None
    expect(alert).to_be_hidden()
    expect(page.locator("#when")).to_contain_text("live")


def test_one_of_several_services_is_chosen(page: Page, views: Scripted) -> None:
    views.pods["chats"] = [pod(0)]
    views.hottest = [HotUid("ann", 0, 0.25, None)]
    expect(page.locator(".pod")).to_have_count(4)
    page.get_by_role("button", name="chats").click()
    expect(page.locator(".pod")).to_have_count(1)
    assert page.get_by_role("button", name="chats").get_attribute("aria-pressed") == "true"
    expect(page.locator("#hot td").first).to_have_text("ann")
    expect(page.locator("#hot td").last).to_have_text("25.0 %")


def test_new_uids_can_be_left_out(page: Page, views: Scripted) -> None:
    views.decide("placed", "ann", 0)
    views.decide("moved", "bob", 1, 0)
    expect(page.locator("#history li")).to_have_count(2)
    page.get_by_label("new uids too").uncheck()
    expect(page.locator("#history li")).to_have_count(1)


def test_nothing_is_wider_than_the_screen(page: Page, views: Scripted) -> None:
    views.decide("moved", "a-long-name-" * 30, 1, 0)
    expect(page.locator("#history li")).to_have_count(1)
    for width in (320, 390, 768, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const own = getComputedStyle(element).backgroundColor;
    return own === "rgba(0, 0, 0, 0)" ? ground(element.parentElement) : own;
  };
  const texts = [...document.querySelectorAll("body *")].filter((element) =>
    element.checkVisibility() && element.id !== "sky"
    && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  return texts.map((element) => {
    const [ink, paper] = [light(getComputedStyle(element).color), light(ground(element))];
    return [(Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05), element.outerHTML];
  }).filter(([ratio]) => ratio < 4.5);
}"""


def test_all_text_can_be_read(page: Page, views: Scripted) -> None:
    page.emulate_media(reduced_motion="reduce")
    for index, what in enumerate(("placed", "moved", "relinked", "set", "removed")):
        views.decide(what, f"u{index}", 1, None if what == "placed" else 0)
    views.pods["rooms"][0] = pod(0, life=Life.GONE)
    views.pods["rooms"][2] = pod(2, state=RoutingState.DENY_NEW)
    views.hottest = [HotUid("ann", 0, 0.25, 3.0)]
    expect(page.locator("#history li")).to_have_count(5)
    expect(page.locator(".pod.gone")).to_have_count(1)
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for scheme in schemes:
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(CONTRAST) == []


FOCUSED = "document.activeElement.textContent || document.activeElement.id"


def test_all_can_be_reached_by_keys_and_has_a_name(page: Page, views: Scripted) -> None:
    views.decide("placed", "ann", 0)
    expect(page.locator("#history li")).to_have_count(1)
    reached = []
    for _ in range(5):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.textContent || document.activeElement.id")
        )
    assert reached == ["Skip to the search", "uid", "Find", "placements", "ann"]
    assert page.locator("html").get_attribute("lang") == "en"
    titled = page.locator("main > section")
    assert all(
        section.get_attribute("aria-labelledby") or section.get_attribute("aria-label")
        for section in titled.all()
    )
