"""A wait for what others wait for too."""

from __future__ import annotations

import asyncio

import pytest

from ray_route import clock
from ray_route.clock import Deadline
from ray_route.errors import RouteTimeoutError
from ray_route.serve.homes import within


def test_who_waited_until_then_by_another_clock_hears_so_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The event loop's clock may be ahead of the one that deadlines are on."""
    monkeypatch.setattr(clock, "now", lambda: 100.0)

    async def main() -> None:
        never = asyncio.get_running_loop().create_future()
        with pytest.raises(RouteTimeoutError, match="a session"):
            await within(Deadline.after(0.01), never, "a session")  # type: ignore[arg-type]

    asyncio.run(main())
