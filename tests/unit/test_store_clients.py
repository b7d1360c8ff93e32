"""Making clients of a store is cheap: short-lived processes make them, too."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest

from ray_route.store.clients import async_client, sync_client
from ray_route.store.url import parse_url

URLS = ["redis://h:1/0", "rediss://u:p@h:1/0", "redis+sentinel://a:1,b:2/main"]


@pytest.mark.parametrize("url", [*URLS, "redis+cluster://a:1,b:2"])
def test_no_client_looks_through_all_that_is_installed(url: str, monkeypatch: Any):
    looks: list[str] = []
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: looks.append(name) or version(name)
    )
    parsed = parse_url(url)
    client = async_client(parsed)
    if parsed.kind != "cluster":  # which asks the nodes at once
        client = sync_client(parsed, 0)
        client.connection_pool.make_connection()
    assert client is not None
    assert looks == []
