"""What a drain counts as moved."""

from __future__ import annotations

from ray_route.errors import StateNotMovedError
from ray_route.model import Link
from ray_route.router.hand_over import summed


def link(pod: int, epoch: int, incarnation: int = 1) -> Link:
    return Link(pod, incarnation, epoch, persistent=False, lease_s=1.0)


def refused(*, is_final: bool) -> StateNotMovedError:
    ids = {"namespace": "n", "service": "s", "pod": 0}
    return StateNotMovedError(reason="no", is_final=is_final, target=1, may_have_run=False, **ids)


def test_a_uid_that_is_its_pods_again_has_not_moved() -> None:
    links = {uid: link(0, 5) for uid in ("away", "back", "anew", "stuck", "later")}
    answers = {
        "away": link(1, 6),
        "back": link(0, 6),
        "anew": link(0, 6, incarnation=2),
        "stuck": refused(is_final=True),
        "later": refused(is_final=False),
    }
    step = summed(links, answers)
    assert step.moved == 2
    assert list(step.stuck) == ["stuck"]
