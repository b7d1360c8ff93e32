"""The stores of states that the pages show, as printed, on real servers: the fenced are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from helpers import unique_name
from postgres import postgres

from ray_route.store.embedded import EmbeddedServer

DOCS = Path(__file__).parents[2] / "docs"


def shown(page: str, name: str) -> Any:
    """Return a class that a page shows."""
    for block in re.findall(r"(?ms)^```python\n(.*?)^```", (DOCS / page).read_text()):
        if f"class {name}:" in block:
            names: dict[str, Any] = {"__name__": f"docs_{unique_name()}"}
            exec(block.partition("\ndeploying = ")[0], names)
            return names[name]
    raise AssertionError((page, name))


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "sqlite":
        yield shown("per_uid.md", "Store")(str(tmp_path / "states.db"))
    elif request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
        yield shown("howto/keep_states.md", "PostgresStore")(url)
    else:
        with EmbeddedServer() as server:
            yield shown("howto/keep_states.md", "RedisStore")(server.url)


def is_refused(act: Any, *what: Any) -> bool:
    """Try to save, or to load, under an epoch; any error but the fence's is raised."""
    try:
        act(*what)
    except Exception as error:
        if not re.search(r"is over|FENCED", str(error)):
            raise
        return True
    return False


def test_what_was_saved_is_loaded_under_later_epochs(store: Any) -> None:
    uid, epoch = unique_name(), 1_800_000_000_000_000  # as they are: microseconds
    assert store.load(uid, epoch) is None
    store.save(uid, epoch, {"count": 1})
    store.save(uid, epoch, {"count": 2})
    assert store.load(uid, epoch + 1) == {"count": 2}
    assert store.load(unique_name(), epoch) is None


def test_a_fenced_owner_saves_nothing_from_the_moment_in_which_its_successor_has_loaded(
    store: Any,
) -> None:
    uid, old, new = unique_name(), 1_800_000_000_000_000, 1_800_000_000_000_001
    store.load(uid, old)
    store.save(uid, old, "old")
    assert store.load(uid, new) == "old"
    assert is_refused(store.save, uid, old, "too late")
    assert store.load(uid, new) == "old"
    store.save(uid, new, "new")
    assert is_refused(store.save, uid, old, "too late")
    assert store.load(uid, new) == "new"


def test_of_owners_that_save_at_once_the_last_one_remains(store: Any) -> None:
    uid, first = unique_name(), 1_800_000_000_000_000

    def own(number: int) -> None:
        is_refused(store.load, uid, first + number)
        for _ in range(5):
            is_refused(store.save, uid, first + number, number)

    with ThreadPoolExecutor(8) as owners:
        list(owners.map(own, range(8)))
    assert store.load(uid, first + 8) == 7


def test_it_goes_along_to_the_pods(store: Any) -> None:
    uid = unique_name()
    store.load(uid, 1)
    store.save(uid, 1, "kept")
    assert ray.cloudpickle.loads(ray.cloudpickle.dumps(store)).load(uid, 1) == "kept"
