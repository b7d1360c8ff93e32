from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ray_route.store.keys import Keys

NAMES = st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True)
UIDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
# Few letters, so that Hypothesis meets names and uids that look like one another's ends.
LIKE_NAMES = st.text("ab-.", min_size=1, max_size=3)
LIKE_UIDS = st.text("ab:{}-\0l", min_size=1, max_size=6)
TRIPLES = st.tuples(NAMES | LIKE_NAMES, NAMES | LIKE_NAMES, UIDS | LIKE_UIDS)


def link_key(triple: tuple[str, str, str], shards: int = 1) -> str:
    """With one shard by default: nothing but the names themselves tells the keys apart."""
    namespace, service, uid = triple
    keys = Keys(namespace, shards)
    return keys.link(keys.shard(uid), service, uid)


def all_keys(triple: tuple[str, str, str]) -> list[str]:
    namespace, service, uid = triple
    keys = Keys(namespace, 4)
    shard = keys.shard(uid)
    return [
        keys.link(shard, service, uid),
        keys.counter(shard),
        keys.pods(service),
        keys.services,
        keys.log,
        keys.meta,
    ]


def hash_tag(key: str) -> str:
    """What Redis Cluster hashes: the text between the first brace and the next closing one."""
    begin = key.index("{")
    return key[begin + 1 : key.index("}", begin)]


@pytest.mark.slow
@given(TRIPLES, TRIPLES)
@example(("n", "a", "-b"), ("n", "a-", "b"))
@example(("n", "a", ":b"), ("n", "a", "b"))
@example(("n", "a", "\0"), ("n", "a", "\0\0"))
@example(("n", "l", "l:l"), ("n", "l", "l"))
def test_no_two_links_share_a_key(one: tuple[str, str, str], other: tuple[str, str, str]):
    assert (link_key(one) == link_key(other)) == (one == other)


@pytest.mark.slow
@given(st.text("ab-.", min_size=3, max_size=8), st.data())
def test_where_one_name_ends_and_the_next_begins_makes_a_difference(letters: str, data):
    cut = st.integers(1, len(letters) - 1)
    one, other = data.draw(cut), data.draw(cut)
    for join in ("", ":", "-"):
        keys = [link_key(("n", letters[:at], join + letters[at:])) for at in (one, other)]
        assert (keys[0] == keys[1]) == (one == other)
        keys = [link_key((letters[:at], letters[at:], "u")) for at in (one, other)]
        assert (keys[0] == keys[1]) == (one == other)


@pytest.mark.slow
@given(st.lists(TRIPLES, unique=True, max_size=20))
def test_many_links_have_as_many_keys(triples: list[tuple[str, str, str]]):
    assert len({link_key(triple).encode() for triple in triples}) == len(triples)


@pytest.mark.slow
@given(TRIPLES, TRIPLES)
def test_a_link_shares_its_key_with_nothing_else(
    one: tuple[str, str, str], other: tuple[str, str, str]
):
    assert link_key(one, 4) not in all_keys(other)[1:]


@pytest.mark.slow
@given(NAMES, NAMES, UIDS | LIKE_UIDS, st.integers(1, 1_000))
def test_all_keys_of_a_shard_have_one_hash_tag(namespace: str, service: str, uid: str, shards: int):
    keys = Keys(namespace, shards)
    shard = keys.shard(uid)
    assert 0 <= shard < shards
    assert hash_tag(keys.link(shard, service, uid)) == hash_tag(keys.counter(shard))
    assert hash_tag(keys.counter(shard)) == f"{namespace}:{shard}"


@pytest.mark.slow
@given(NAMES, NAMES)
def test_all_keys_of_a_namespace_itself_have_one_hash_tag(namespace: str, service: str):
    keys = Keys(namespace, 4)
    own = [keys.pods(service), keys.services, keys.log, keys.meta]
    assert {hash_tag(key) for key in own} == {namespace}
    assert len(set(own)) == len(own)


@pytest.mark.slow
@given(st.lists(NAMES, unique=True, min_size=2, max_size=5))
def test_namespaces_share_no_key(namespaces: list[str]):
    keys = [set(all_keys((namespace, "s", "u"))) for namespace in namespaces]
    assert len(set.union(*keys)) == sum(map(len, keys))


@pytest.mark.parametrize(("uid", "shard"), [("123456789", 0x26), ("\0", 0x8D), ("é", 62)])
def test_a_uids_shard_never_changes(uid: str, shard: int):
    # The first is the published check value of CRC-32.
    assert Keys("n", 256).shard(uid) == shard


def test_a_uids_shard_is_the_same_in_another_process():
    uids = [f"user-{number}" for number in range(50)]
    program = (
        "from ray_route.store.keys import Keys\n"
        f"print([Keys('n', 256).shard(uid) for uid in {uids!r}])"
    )
    words = [sys.executable, "-c", program]
    environment = {"PYTHONHASHSEED": "12345"}
    shown = subprocess.run(words, capture_output=True, check=True, text=True, env=environment)
    assert shown.stdout.strip() == str([Keys("n", 256).shard(uid) for uid in uids])


def test_uids_are_spread_over_all_shards():
    keys = Keys("n", 256)
    assert {keys.shard(f"user-{number}") for number in range(5_000)} == set(range(256))
