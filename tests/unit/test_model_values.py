from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ray_route.errors import InvalidInputError
from ray_route.model import (
    Explanation,
    Life,
    Link,
    LinkedPods,
    Pod,
    PodRecord,
    RoutingState,
    check_name,
    check_pod,
    check_uid,
    check_uids,
)

LINK = Link(0, 7, 2**53 - 1, persistent=False, lease_s=12.5)
RECORD = PodRecord(0, 7, RoutingState.READY, Life.ALIVE, 0.0, "node", "process", "actor", 1)


@pytest.mark.parametrize("uid", ["a", "x" * 512, "é" * 256, "a\0b", "\0", " ", "a:b", "{x}", "🙂"])
def test_any_text_of_1_to_512_bytes_is_a_uid(uid: str):
    assert check_uid(uid) == uid


@pytest.mark.parametrize("uid", ["", "x" * 513, "é" * 257, "\ud800", 42, None, b"a", ["a"]])
def test_nothing_else_is_a_uid(uid: object):
    with pytest.raises(InvalidInputError) as caught:
        check_uid(uid)
    assert caught.value.argument == "uid"


@pytest.mark.parametrize("name", ["a", "A-b_c.9", "x" * 64, "-", "..."])
def test_a_name_is_a_short_plain_word(name: str):
    assert check_name("service", name) == name


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "a:b", "{a}", "é", "a\n", "a/b", None, 1])
def test_nothing_else_is_a_name(name: object):
    with pytest.raises(InvalidInputError) as caught:
        check_name("service", name)
    assert caught.value.argument == "service"


@pytest.mark.parametrize("pod", [0, 1, 2**31 - 1])
def test_pods_are_counted_from_0(pod: int):
    assert check_pod(pod) == pod


@pytest.mark.parametrize("pod", [-1, True, False, 1.0, "1", None, 2**31])
def test_nothing_else_is_a_pod(pod: object):
    with pytest.raises(InvalidInputError) as caught:
        check_pod(pod)
    assert caught.value.argument == "pod"


@given(st.text())
def test_a_uid_is_accepted_exactly_if_it_has_1_to_512_bytes(uid: str):
    valid = 1 <= len(uid.encode(errors="surrogatepass")) <= 512
    valid = valid and not any("\ud800" <= letter <= "\udfff" for letter in uid)
    try:
        assert check_uid(uid) == uid
        accepted = True
    except InvalidInputError:
        accepted = False
    assert accepted == valid


UID_LISTS = st.lists(st.text(max_size=3) | st.sampled_from(["x" * 512, "x" * 513, "é" * 257, 5]))


@pytest.mark.slow
@given(UID_LISTS)
@example([])
@example(["a", "a", "é" * 200, "b"])
@example(["a", "\ud800"])
def test_many_uids_are_valid_exactly_if_each_one_is(uids: list[str]):
    one_by_one = outcome(lambda: [check_uid(uid) for uid in uids])
    assert outcome(lambda: check_uids(iter(uids))) == one_by_one


def outcome(check: Callable[[], list[str]]) -> list[str] | str:
    try:
        return check()
    except InvalidInputError as error:
        return str(error)


def test_one_string_is_not_many_uids():
    with pytest.raises(InvalidInputError, match="uids"):
        check_uids("abc")


def test_links_are_equal_whatever_is_left_of_their_leases():
    assert replace(LINK, lease_s=1.0) == LINK
    assert hash(replace(LINK, lease_s=1.0)) == hash(LINK)


@pytest.mark.parametrize(
    "change", [{"pod": 1}, {"incarnation": 8}, {"epoch": 5}, {"persistent": True}]
)
def test_links_differ_by_all_else(change: dict[str, int]):
    assert replace(LINK, **change) != LINK


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_link_pickles_whole_and_small(protocol: int):
    pickled = pickle.dumps(LINK, protocol)
    copied = pickle.loads(pickled)
    assert (copied, copied.lease_s) == (LINK, LINK.lease_s)
    assert len(pickled) < 200


def test_a_link_can_not_be_changed():
    with pytest.raises(FrozenInstanceError):
        LINK.epoch = 1


@pytest.mark.parametrize(
    ("state", "life", "available", "routable"),
    [
        (RoutingState.READY, Life.ALIVE, True, True),
        (RoutingState.DENY_NEW, Life.ALIVE, False, True),
        (RoutingState.SHUTDOWN, Life.ALIVE, False, False),
        (RoutingState.READY, Life.GONE, False, False),
        (RoutingState.READY, Life.RESIGNED, False, False),
    ],
)
def test_a_pod_takes_new_uids_and_keeps_old_ones_by_its_state_and_life(
    state: RoutingState, life: Life, available, routable
):
    record = replace(RECORD, state=state, life=life)
    assert (record.available, record.routable) == (available, routable)
    assert record.describe() == (state.value if life is Life.ALIVE else life.value)


def test_linked_pods_is_a_mapping_from_pods_to_uids():
    found = LinkedPods({0: ["a", "a"], 3: ["b"]}, ["c"], frozenset({3}))
    assert dict(found) == {0: ["a", "a"], 3: ["b"]}
    assert (len(found), found[0], found.get(1)) == (2, ["a", "a"], None)
    assert (found.missing, found.unroutable) == (["c"], {3})


def test_linked_pods_survives_pickling():
    found = LinkedPods({0: ["a"], 3: ["b"]}, ["c"], frozenset({3}))
    copied = pickle.loads(pickle.dumps(found))
    assert (dict(copied), copied.missing, copied.unroutable) == (dict(found), ["c"], {3})


def test_the_repr_of_a_large_batch_is_short():
    found = LinkedPods({0: ["uid"] * 100_000}, ["uid"] * 5, frozenset())
    assert repr(found) == "LinkedPods({0: 100000}, missing=5, unroutable=set())"


def test_an_explanation_tells_the_link_the_pod_and_the_decisions():
    pod = Pod(0, RoutingState.DENY_NEW, Life.ALIVE, 2.5, 3, "node", "actor", 7, 0.25)
    text = str(Explanation("game", "chat", "u", 5, LINK, pod, 3.0, ("12:00:00 placed: pod 0",)))
    for part in ("'u'", "game/chat", "shard 5", "pod 0", "temporary", str(LINK.epoch), "3.0 s"):
        assert part in text
    assert "DENY_NEW" in text
    assert "placed: pod 0" in text


def test_an_explanation_of_no_link_says_so():
    assert "no link" in str(Explanation("game", "chat", "u", 5, None, None, None, ()))
