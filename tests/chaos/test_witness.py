"""What the pods under faults write down is what the checker reads."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from history import Fault, History
from states import state_violations
from witness import AsyncWitness, Saves, UserWitness, Witness
from world import read_logs

import ray_route


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The epochs under which this process, were it a pod, holds its uids."""
    held: dict[str, Any] = {}
    agent = SimpleNamespace(
        pod=2, incarnation=5, gate=SimpleNamespace(held=SimpleNamespace(entries=held))
    )

    def link() -> ray_route.CurrentLink:
        return ray_route.CurrentLink("svc", "u", pod=2, incarnation=5, epoch=held["u"].epoch)

    monkeypatch.setattr(ray_route, "current_agent", lambda: agent)
    monkeypatch.setattr(ray_route, "current_link", link)
    return held


def read(folder: Path, *faults: Fault) -> History:
    history = History(faults=list(faults), shut_down=True)
    read_logs(folder, history)
    return history


@pytest.mark.parametrize("cls", [Witness, AsyncWitness])
def test_what_it_counts_is_handed_over_and_read_back(
    epochs: dict[str, Any], tmp_path: Path, cls: type[Any]
) -> None:
    def done(result: Any) -> Any:
        return asyncio.run(result) if asyncio.iscoroutine(result) else result

    told = []
    for epoch in (3, 4):
        epochs["u"] = SimpleNamespace(epoch=epoch, used_at=0.0)
        pod = cls(str(tmp_path), seed=1, hook_s=0.0, starved_s=60.0)
        done(pod.on_acquire("u"))
        told += [done(pod.serve(f"c{epoch}{n}", 0.0)) for n in range(2)]
        done(pod.on_release("u"))
    assert told == [1, 2, 3, 4]
    history = read(tmp_path)
    assert state_violations(history) == []
    assert [(call.epoch, call.count) for call in sorted(history.served, key=lambda c: c.start)] == [
        (3, 1),
        (3, 2),
        (4, 3),
        (4, 4),
    ]
    hooks = sorted(history.hooks, key=lambda hook: hook.start)
    assert [(hook.kind, hook.count) for hook in hooks] == [
        ("acquire", 0),
        ("release", 2),
        ("acquire", 2),
        ("release", 4),
    ]
    assert {(hook.pod, hook.incarnation) for hook in hooks} == {(2, 5)}


def test_an_object_for_each_user_takes_its_count_along(
    epochs: dict[str, Any], tmp_path: Path
) -> None:
    epochs["u"] = SimpleNamespace(epoch=3, used_at=0.0)
    first = UserWitness("u", str(tmp_path), seed=1, hook_s=0.0, starved_s=60.0)
    assert [first.serve("c1", 0.0), first.serve("c2", 0.0)] == [1, 2]
    first.on_release()
    state = pickle.dumps(first.__getstate__())
    epochs["u"] = SimpleNamespace(epoch=4, used_at=0.0)
    second = UserWitness.__new__(UserWitness)
    second.__setstate__(pickle.loads(state))
    assert second.serve("c3", 0.0) == 3
    second.on_release()
    epochs["u"] = SimpleNamespace(epoch=5, used_at=0.0)  # whose pod was lost
    third = UserWitness("u", str(tmp_path), seed=1, hook_s=0.0, starved_s=60.0)
    third.on_release()
    history = read(tmp_path)
    assert state_violations(history, turns=True) == []
    hooks = sorted(history.hooks, key=lambda hook: hook.start)
    assert [(hook.kind, hook.epoch, hook.count) for hook in hooks] == [
        ("acquire", 3, 0),
        ("release", 3, 2),
        ("acquire", 4, 2),
        ("release", 4, 3),
        ("acquire", 5, 3),
        ("release", 5, 3),
    ]
    assert (tmp_path / "carried").read_text() == "u 2\n"


def test_a_second_release_is_written_down(epochs: dict[str, Any], tmp_path: Path) -> None:
    epochs["u"] = SimpleNamespace(epoch=3, used_at=0.0)
    pod = Witness(str(tmp_path), seed=1, hook_s=0.0, starved_s=60.0)
    pod.on_acquire("u")
    pod.on_release("u")
    pod.on_release("u")
    assert any("after on_release" in what for what in state_violations(read(tmp_path)))


def test_what_was_lost_is_written_down(epochs: dict[str, Any], tmp_path: Path) -> None:
    epochs["u"] = SimpleNamespace(epoch=3, used_at=0.0)
    pod = Witness(str(tmp_path), seed=1, hook_s=0.0, starved_s=60.0)
    pod.on_acquire("u")
    pod.serve("c", 0.0)
    pod.on_lost("u")
    (what,) = state_violations(read(tmp_path))
    assert "on_lost ran, and 1 was its count" in what


def test_what_was_under_way_has_no_end(epochs: dict[str, Any], tmp_path: Path) -> None:
    epochs["u"] = SimpleNamespace(epoch=3, used_at=0.0)
    pod = Witness(str(tmp_path), seed=1, hook_s=0.0, starved_s=60.0)
    pod.on_acquire("u")
    pod._call_begins("c")
    history = read(tmp_path)
    assert history.served[0].end is None
    assert history.served[0].count is None


def test_a_process_without_time_is_told_from_one_that_was_frozen(
    epochs: dict[str, Any], tmp_path: Path
) -> None:
    epochs["u"] = SimpleNamespace(epoch=3, used_at=0.0)
    pod = Witness(str(tmp_path), seed=1, hook_s=0.0, starved_s=60.0)
    pod.on_acquire("u")
    pod._log.starved(10.0, 14.0)
    starved = Fault("starved", 10.0, incarnation=5, until=14.0)
    assert read(tmp_path).faults == [starved]
    freeze = replace(starved, kind="freeze", at=10.05)
    assert read(tmp_path, freeze).faults == [freeze]


def test_a_save_of_an_earlier_owner_that_comes_late_is_in_vain(tmp_path: Path) -> None:
    saves = Saves(str(tmp_path))
    assert saves.load("u") == 0
    saves.save("u", 4, 7)
    saves.save("u", 3, 5)
    assert saves.load("u") == 7
