"""What was made of a deployment that fails is ended, wherever its maker is interrupted."""

from __future__ import annotations

from contextlib import suppress

import pytest
from helpers import eventually
from interrupting import at_every_line

from ray_route.pod import stopping
from ray_route.pod.stopping import Actors, ended_at_failure
from ray_route.runtime import given_up, waiting


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_made_is_ended_wherever_its_maker_is_interrupted(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[str] = []
    whole: list[Actors] = []
    # As a session in which one types keeps the last error, and with it all that its frames have.
    last: list[BaseException] = []

    def kill(made: Actors) -> None:
        for actor in made.values():
            with suppress(ValueError):
                there.remove(actor)

    def make(made: Actors) -> Actors:
        made[0] = "a pod"
        there.append("a pod")
        if fails:
            raise LookupError
        return made

    def work() -> None:
        whole.clear()
        try:
            whole.append(ended_at_failure(make))
        except BaseException as error:
            last[:] = [error]
            if isinstance(error, KeyboardInterrupt):
                raise

    def check() -> None:
        eventually(lambda: bool(there) == bool(whole), "it is whole, or ended")
        there.clear()

    monkeypatch.setattr(stopping, "kill", kill)
    assert at_every_line(work, check, stopping, given_up, waiting) > 1
