"""A service's pods, as they are shown."""

from __future__ import annotations

from ray_route.model import Pod
from ray_route.notebook import table


class Pods(dict[int, Pod]):
    """Pods by index; a notebook shows them as a table."""

    def _repr_html_(self) -> str:
        return table("Pods", list(self.values()))
