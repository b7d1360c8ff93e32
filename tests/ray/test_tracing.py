"""Spans arrive where the program has set OpenTelemetry up."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import ray_route
from ray_route.runtime import tracing


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Those of a provider of this test's own: a process can set its global one only once."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("ray_route"))
    monkeypatch.setattr(tracing, "_is_set_up", lambda: True)
    yield exporter
    provider.shutdown()


def named(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


def test_what_waits_has_a_span_and_a_near_hit_has_none(
    client: Any, u: str, spans: InMemorySpanExporter
) -> None:
    client.compute_linked_pod(u, "svc")
    client.compute_linked_pod(u, "svc")
    assert client.call(u, "svc", "add", u) == 1
    client.batch_get_linked_pod([u], "svc")
    finished = [span.name for span in spans.get_finished_spans()]
    assert finished == ["ray_route.compute", "ray_route.call", "ray_route.batch"]
    for span in spans.get_finished_spans():
        assert dict(span.attributes or {}) == {"ray_route.namespace": client.namespace}
        assert u not in span.to_json()


def test_an_error_is_recorded(client: Any, u: str, spans: InMemorySpanExporter) -> None:
    with pytest.raises(ray_route.NoAvailablePodError):
        client.compute_linked_pod("u", "no-such-service")
    span = named(spans)["ray_route.compute"]
    assert not span.status.is_ok
    assert [event.name for event in span.events] == ["exception"]


async def _ask(namespace: str, uid: str) -> None:
    async with await ray_route.connect_async(namespace) as client:
        await client.get_linked_pod(uid, "svc")


def test_the_async_client_has_the_same(client: Any, u: str, spans: InMemorySpanExporter) -> None:
    asyncio.run(_ask(client.namespace, u))
    assert "ray_route.get" in named(spans)


def test_without_opentelemetry_nothing_happens(
    client: Any, u: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "_tracer", None)
    assert client.compute_linked_pod(u, "svc")


SET_UP_LATE = """
from ray_route.runtime.tracing import span
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
with span("early", "game") as nothing:
    assert nothing is None and not trace.get_current_span().is_recording()
trace.set_tracer_provider(TracerProvider())
with span("late", "game"):
    assert trace.get_current_span().name == "ray_route.late"
"""


def test_a_program_may_set_tracing_up_after_the_import() -> None:
    subprocess.run([sys.executable, "-c", SET_UP_LATE], check=True, timeout=60)
