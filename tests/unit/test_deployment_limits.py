"""What a deployment is asked for comes to an end: limits that never do are refused at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from ray_route import Deployment, InvalidInputError

ASKED: list[tuple[Callable[..., object], tuple[object, ...], str]] = [
    (Deployment.upgrade, (int,), "deadline_s"),
    (Deployment.upgrade, (int,), "timeout"),
    (Deployment.scale, (1,), "deadline_s"),
    (Deployment.scale, (1,), "timeout"),
    (Deployment.rebalance, (), "deadline_s"),
    (Deployment.keep_even, (0.2,), "timeout"),
    (Deployment.cordon, (0,), "timeout"),
    (Deployment.uncordon, (0,), "timeout"),
]


@pytest.mark.parametrize("seconds", [math.inf, math.nan, -1.0, 0, True, "60"])
@pytest.mark.parametrize(("ask", "given", "limit"), ASKED)
def test_limits_are_positive_and_finite(
    ask: Callable[..., object], given: tuple[object, ...], limit: str, seconds: object
) -> None:
    nowhere = object.__new__(Deployment)  # it is refused before anyone is asked
    with pytest.raises(InvalidInputError, match=f"{limit}="):
        ask(nowhere, *given, **{limit: seconds})
