"""The pictures of the live page, taken of a real service: `python docs/screens.py [FOLDER]`.

Needs Playwright and Debian's Chromium. Starts a Ray of its own, deploys a service, has a pod
drained and another killed, and looks at the page meanwhile, as on a desk and as on a phone.
"""
# ruff: noqa: INP001, S311 - a program beside the pages, and no package; no secrets are drawn

from __future__ import annotations

import contextlib
import random
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import ray
from playwright.sync_api import Browser, Page, sync_playwright

import ray_route
from ray_route.cli.cluster import joined_cluster
from ray_route.cli.page.server import PageServer
from ray_route.cli.page.views import Views
from ray_route.protocol.names import RAY_NAMESPACE

FOLDER = Path(__file__).parent / "pictures"
NAMESPACE, SERVICE, PODS, UIDS = "game", "rooms", 6, 240
SIZES = {"desk": (1240, 860), "phone": (390, 844)}
LOOK_S = 15.0  # so that there is something to be seen


class Rooms:
    """A pod of many rooms."""

    def say(self, text: str) -> str:
        """Answer, after a little work."""
        time.sleep(0.02)
        return text


@contextlib.contextmanager
def talk(client: ray_route.RouteClient) -> Iterator[None]:
    """Have people talk meanwhile, some more than others, and new ones come."""
    over = threading.Event()

    def run() -> None:
        known = UIDS
        while not over.wait(0.02):
            known += random.random() < 0.1
            client.call(
                f"user-{int(random.paretovariate(0.8)) % known}",
                SERVICE,
                "say",
                "hello",
                idempotent=True,
            )

    talker = threading.Thread(target=run)
    talker.start()
    try:
        yield
    finally:
        over.set()
        talker.join()


@contextlib.contextmanager
def page_of(namespace: str) -> Iterator[str]:
    """Serve the page of a namespace; give its URL."""
    with (
        joined_cluster(None, None) as cluster,
        PageServer(Views(cluster.namespace(namespace)), 0) as server,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.url
        finally:
            server.shutdown()


def opened(browser: Browser, url: str, size: str, scheme: Literal["light", "dark"]) -> Page:
    """Open the page on a screen, and wait until it shows pods."""
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(url)
    page.wait_for_selector(f".pod >> nth={PODS - 1}")
    return page


def take(browser: Browser, url: str, deployment: ray_route.Deployment, folder: Path) -> None:
    """Take the pictures: a drain amid a death's traces, and what has come of it on a phone."""
    desk = opened(browser, url, "desk", "light")
    phone = opened(browser, url, "phone", "dark")
    desk.wait_for_timeout(1e3 * LOOK_S)
    doomed = deployment.pods()[4].actor
    ray.kill(ray.get_actor(doomed, namespace=RAY_NAMESPACE), no_restart=False)
    desk.locator("#history .relinked .uid").first.click()
    desk.wait_for_selector("#answer ol")
    desk.wait_for_timeout(1e3 * LOOK_S)
    drain = threading.Thread(target=deployment.drain, args=(2,))
    drain.start()
    desk.wait_for_selector("#sky > .moved >> nth=4")
    desk.wait_for_timeout(450)
    desk.screenshot(path=folder / "live_page.png")
    drain.join()
    phone.bring_to_front()
    phone.wait_for_timeout(3000)
    phone.screenshot(path=folder / "live_page_phone.png")


def main() -> None:
    """Deploy, talk, and take the pictures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    ray.init("local", include_dashboard=False, log_to_driver=False, num_cpus=4)
    options = {"namespace": NAMESPACE, "service": SERVICE, "replicas": PODS}
    with ray_route.connect(NAMESPACE) as client, ray_route.deploy(Rooms, **options) as deployment:
        for number in range(UIDS):
            client.call(f"user-{number}", SERVICE, "say", "hello")
        with talk(client), page_of(NAMESPACE) as url, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
            take(browser, url, deployment, folder)
            browser.close()


if __name__ == "__main__":
    main()
