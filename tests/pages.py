"""The live page over real HTTP, and a browser to look at it."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, sync_playwright

from ray_route.cli.page.server import PageServer
from ray_route.cli.page.views import Views


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str

    @property
    def document(self) -> Any:
        return json.loads(self.text)


@contextmanager
def served(views: Views) -> Iterator[PageServer]:
    with PageServer(views, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(url: str, method: str = "GET", **headers: str) -> Answer:
    split = urlsplit(url)
    connection = http.client.HTTPConnection(split.netloc, timeout=60)
    try:
        target = f"{split.path}?{split.query}" if split.query else split.path
        connection.request(method, target, headers=headers)
        reply = connection.getresponse()
        return Answer(reply.status, dict(reply.getheaders()), reply.read().decode())
    finally:
        connection.close()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser; skip where none is installed, but not in CI, whose script installs it."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, timeout=60_000)
        yield browser
        browser.close()
