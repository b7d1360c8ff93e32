"""Whose turn it is to scale a service: one caller's at a time, for as long as it asks for it."""

from __future__ import annotations

from dataclasses import dataclass

from ray_route.clock import Clock, now


@dataclass(frozen=True, slots=True)
class _Turn:
    holder: str
    ends_at: float


class Scalings:
    """The turns of one router. In memory alone: its holder renews it with the next router.

    Two callers that scale one service at once would each end pods that the other counts on.
    """

    def __init__(self, clock: Clock = now) -> None:
        self._clock = clock
        self._turns: dict[str, _Turn] = {}

    def hold(self, service: str, holder: str, lease_s: float) -> bool:
        """Take the turn, or keep it for `lease_s` seconds more; False while it is another's."""
        turn = self._turns.get(service)
        if turn is not None and turn.holder != holder and turn.ends_at > self._clock():
            return False
        self._turns[service] = _Turn(holder, self._clock() + lease_s)
        return True

    def release(self, service: str, holder: str) -> None:
        """Give the turn to the next, if it still is this caller's."""
        turn = self._turns.get(service)
        if turn is not None and turn.holder == holder:
            del self._turns[service]
