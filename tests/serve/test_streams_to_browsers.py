"""The page on streaming to browsers runs as printed, and a browser that leaves ends its stream."""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from helpers import end_router
from serveapp import end_application
from tutorial import blocks

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "stream.md"


def asked(url: str, prompt: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("GET", f"/tokens?user=ann&prompt={prompt}")
    return connection, connection.getresponse()


def test_the_pages_code_runs(serve_url: str) -> None:
    ((_, _, code),) = blocks(PAGE)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(code, names)
    try:
        _, answer = asked(serve_url, "hello+there")
        assert answer.read().decode() == "data: turn 1:\n\ndata: hello\n\ndata: there\n\n"
        connection, answer = asked(serve_url, "word+" * 5_000)
        assert answer.readline() == b"data: turn 2:\n"
        connection.close()
        answer.close()
        client = names["client"]
        owner = client.compute_linked_pod("ann", "models")
        gone = client.move("ann", "models", 1 - owner.pod, timeout=30)  # waits for its calls
        assert gone.pod == 1 - owner.pod
    finally:
        end_application("tokens")
        names["deployment"].shutdown()
        names["client"].close()
        end_router("tokens")
