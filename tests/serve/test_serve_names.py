from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_route.model import check_name, check_uid
from ray_route.serve.names import service_name, session_uid


def test_a_plain_deployments_service_is_readable():
    assert service_name("shop", "Chat") == "shop.Chat"


@given(st.text(min_size=1), st.text(min_size=1))
def test_every_deployment_has_a_valid_service(app: str, deployment: str):
    check_name("service", service_name(app, deployment))


ALIKE = [("a.b", "c"), ("a", "b.c"), ("a b", "c"), ("a-b", "c"), ("x" * 80, "c"), ("x" * 80, "d")]


@pytest.mark.parametrize(("one", "other"), list(combinations(ALIKE, 2)))
def test_no_two_deployments_share_a_service(one: tuple[str, str], other: tuple[str, str]):
    assert service_name(*one) != service_name(*other)


@given(st.text(min_size=1, alphabet=st.characters()))
def test_every_session_has_a_valid_uid(session: str):
    check_uid(session_uid(session))


def test_a_session_that_can_be_a_uid_is_one():
    assert session_uid("user 42/ü") == "user 42/ü"


def test_long_sessions_that_begin_alike_differ():
    assert session_uid("s" * 600 + "1") != session_uid("s" * 600 + "2")
