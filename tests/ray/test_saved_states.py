"""States that a store of the user's keeps beyond the life of a pod."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import eventually, unique_name
from peruid import SqliteStore, Tally
from postgres import postgres

import ray_route

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "keep_states.md"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SqliteStore:
    return SqliteStore(str(tmp_path_factory.mktemp("states") / "states.db"))


@pytest.fixture(scope="module")
def deployed(client: ray_route.RouteClient, store: SqliteStore) -> Iterator[ray_route.Deployment]:
    options: dict[str, Any] = {"namespace": client.namespace, "service": "kept", "replicas": 2}
    saving: dict[str, Any] = {"per_uid": True, "store": store, "save_every_s": 0.1}
    with ray_route.deploy(Tally, **options, **saving) as deployment:
        yield deployment


@pytest.fixture
def kept(client: ray_route.RouteClient, deployed: ray_route.Deployment) -> Any:
    """The service, both of whose pods serve, whatever the test before has done to one."""
    alive = ray_route.Life.ALIVE
    eventually(
        lambda: all(pod.life is alive for pod in deployed.pods().values()), "its pods serve", 60
    )
    return client.service("kept", Tally)


@pytest.fixture
def ann() -> str:
    return unique_name()


def saved(store: SqliteStore, uid: str) -> Any:
    with store._open() as db:
        rows = db.execute("SELECT epoch, state FROM states WHERE uid = ?", (uid,)).fetchall()
    return rows[0] if rows and rows[0][1] is not None else None


def test_what_was_saved_outlives_a_pod_that_dies(kept: Any, store: SqliteStore, ann: str) -> None:
    assert [kept[ann].add.remote().result() for _ in range(3)] == [1, 2, 3]
    eventually(lambda: (store.load(ann, 0) or {}).get("count") == 3, "it has been saved")
    with pytest.raises(ray_route.PodUnavailableError):
        kept[ann].exit.remote().result()
    assert kept[ann].options(timeout_s=60).add.remote().result() == 4


def test_an_owner_that_has_lost_the_uid_saves_nothing_more(
    client: ray_route.RouteClient, kept: Any, store: SqliteStore, ann: str
) -> None:
    assert kept[ann].add.remote().result() == 1
    old = client.compute_linked_pod(ann, "kept")
    client.move(ann, "kept", 1 - old.pod)
    assert kept[ann].add.remote().result() == 2, "its state has gone along"
    new = client.compute_linked_pod(ann, "kept")
    eventually(lambda: saved(store, ann) and saved(store, ann)[0] == new.epoch, "it is saved")
    with pytest.raises(PermissionError):
        store.save(ann, old.epoch, {"uid": ann, "count": 99})
    assert store.load(ann, old.epoch)["count"] == 2


def test_an_orderly_end_saves_at_once(client: ray_route.RouteClient, tmp_path: Path) -> None:
    store, uid = SqliteStore(str(tmp_path / "states.db")), unique_name()
    options: dict[str, Any] = {"namespace": client.namespace, "service": uid, "replicas": 1}
    for count in (1, 2):
        with ray_route.deploy(Tally, per_uid=True, store=store, save_every_s=3600, **options):
            assert client.service(uid, Tally)[uid].add.remote().result() == count


def test_a_store_is_for_objects_of_one_uid_alone(store: SqliteStore) -> None:
    with pytest.raises(ray_route.InvalidInputError, match="per_uid"):
        ray_route.deploy(Tally, namespace="no", service="no", replicas=1, store=store)


def test_the_page_of_stores_as_printed_on_postgres(
    client: ray_route.RouteClient, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```", PAGE.read_text())
    names: dict[str, Any] = {"__name__": "docs_keep_states"}
    with postgres() as url:
        for block in [*blocks, blocks[-1]]:  # the second time it goes on where the first one ended
            there = block.replace("postgresql://localhost/states", url)
            exec(there.replace('"kept"', repr(client.namespace)), names)
    assert capsys.readouterr().out.split() == ["1", "2"]
