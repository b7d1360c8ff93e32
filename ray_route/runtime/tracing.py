"""OpenTelemetry spans, where OpenTelemetry is installed and set up by the program; else nothing.

One span per operation of a client that waits for something. Hits in the near cache wait for
nothing and have none. No span carries a uid: it may name a person.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

try:
    from opentelemetry import trace
except ImportError:
    trace: Any = None  # type: ignore[no-redef]
    _tracer: Any = None
else:
    _tracer = trace.get_tracer("ray_route")

_NO_SPAN = nullcontext()


def _is_set_up() -> bool:
    # Without a provider a span is nothing, and takes 5 µs; Ray brings OpenTelemetry everywhere.
    return trace is not None and not isinstance(
        trace.get_tracer_provider(), trace.ProxyTracerProvider
    )


def span(operation: str, namespace: str) -> AbstractContextManager[Any]:
    """Return a span named `ray_route.<operation>`, the current one while it is entered.

    An exception that passes through it is recorded, and makes its status an error.
    """
    if not _is_set_up():
        return _NO_SPAN
    attributes = {"ray_route.namespace": namespace}
    started: AbstractContextManager[Any] = _tracer.start_as_current_span(
        f"ray_route.{operation}", attributes=attributes
    )
    return started
