from __future__ import annotations

import pytest

from ray_route.errors import UnsafeStoreError
from ray_route.store.namespaces import check_safe

SAFE = {"redis_version": "7.2.4", "role": "master", "maxmemory_policy": "noeviction"}
ADDRESS = "10.0.0.7:6379"


def refusal(**info: object) -> UnsafeStoreError:
    with pytest.raises(UnsafeStoreError) as caught:
        check_safe(ADDRESS, {**SAFE, **info})
    assert caught.value.address == ADDRESS
    for part in (ADDRESS, caught.value.reason, caught.value.fix):
        assert part in str(caught.value)
    return caught.value


@pytest.mark.parametrize("version", ["6.2", "6.2.0", "6.2.14", "7.0.0", "7.2.4", "10.0.1", "8"])
def test_a_primary_of_a_known_version_that_evicts_nothing_is_safe(version: str):
    check_safe(ADDRESS, {**SAFE, "redis_version": version})


def test_a_server_that_does_not_tell_its_policy_is_trusted():
    check_safe(ADDRESS, {key: value for key, value in SAFE.items() if "policy" not in key})


@pytest.mark.parametrize(
    "policy",
    ["allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-ttl"],
)
def test_every_policy_that_evicts_is_refused(policy: str):
    error = refusal(maxmemory_policy=policy)
    assert policy in error.reason
    assert "maxmemory-policy" in error.fix
    assert "noeviction" in error.fix


@pytest.mark.parametrize("version", ["6.0", "6.0.16", "6.1.99", "5.0.14", "2.8", "0"])
def test_an_old_version_is_refused(version: str):
    error = refusal(redis_version=version)
    assert version in error.reason
    assert "6.2" in error.fix


def test_a_replica_is_refused():
    error = refusal(role="slave")
    assert "replica" in error.reason
    assert "primary" in error.fix


def test_a_server_that_says_nothing_of_itself_is_refused():
    with pytest.raises(UnsafeStoreError):
        check_safe(ADDRESS, {})
