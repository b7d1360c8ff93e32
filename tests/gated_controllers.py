"""Controllers whose constructors wait to be let go on. Importable by Ray's workers."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from ray_route.controller.actor import Controller
from ray_route.controller.recipe import Recipe


class GatedController(Controller):
    """Does not begin while its service's gate is shut."""

    def __init__(self, patience_s: float, held: list[Any], *pieces: bytes) -> None:
        gate = Gate(Recipe.whole(pieces).spec.service)
        while gate.path.exists():
            gate.path.with_suffix(".waits").touch()
            time.sleep(0.02)
        super().__init__(patience_s, held, *pieces)


class Gate:
    """What the controllers of one service wait at, by name."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.path = Path(tempfile.gettempdir()) / f"ray_route-gate-{service}"

    def shut(self) -> None:
        """Have controllers that are made from now on not begin."""
        self.path.with_suffix(".waits").unlink(missing_ok=True)
        self.path.touch()

    def open(self) -> None:
        """Let them begin."""
        self.path.unlink(missing_ok=True)

    def waits(self) -> bool:
        """Say whether one has come to the gate since it was shut."""
        return self.path.with_suffix(".waits").exists()
