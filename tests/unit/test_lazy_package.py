"""What `import ray_route` loads, and what it leaves until it is asked for."""

from __future__ import annotations

import ast
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

import ray_route

PACKAGE = Path(ray_route.__file__).parent
TOP = ast.parse((PACKAGE / "__init__.py").read_text()).body


def fresh(program: str) -> Any:
    """Run a program in a fresh process; return what it prints, as JSON."""
    run = [sys.executable, "-c", f"import json, sys\n{program}"]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


LOADED = "print(json.dumps([name for name in sys.modules if name.startswith('ray_route.')]))"


def rooms_loaded(program: str) -> set[str]:
    """Return what of the package is loaded then: its rooms, and files at its root."""
    return {name.split(".")[1] for name in fresh(f"{program}\n{LOADED}")}


def test_the_package_alone_loads_values_and_errors() -> None:
    assert rooms_loaded("import ray_route") == {
        *("_version", "error_root", "errors", "model", "notebook", "policies"),
    }


@pytest.mark.slow
def test_who_connects_loads_neither_pods_nor_what_deploys_them() -> None:
    loaded = fresh(f"import ray_route\nray_route.connect, ray_route.connect_async\n{LOADED}")
    rooms = {name.split(".")[1] for name in loaded}
    assert "client" in rooms
    assert rooms.isdisjoint(
        {"bench", "cli", "controller", "demo", "deploying", "deployment", "pod", "router", "serve"}
    )
    many = {"ray_route.client.batch", "ray_route.store.bulk", "ray_route.store.wanted"}
    assert many.isdisjoint(loaded)
    assert "ray_route.protocol.commands" not in loaded


@pytest.mark.slow
def test_who_looks_for_its_router_loads_its_class_and_none_of_its_parts() -> None:
    """As Ray does in each process that connects."""
    loaded = set(fresh(f"import ray_route.router.actor\n{LOADED}"))
    router = {name for name in loaded if name.startswith("ray_route.router.")}
    assert router == {"ray_route.router.actor"}
    assert {"ray_route.protocol.commands", "ray_route.client"}.isdisjoint(loaded)


@pytest.mark.slow
def test_a_class_of_pods_loads_no_client() -> None:
    loaded = rooms_loaded("import ray_route\nray_route.interleave, ray_route.current_link")
    assert loaded.isdisjoint({"client", "controller", "deploying", "deployment", "router"})


def test_every_public_name_is_found_and_is_what_type_checkers_take_it_for() -> None:
    homes = typed()
    assert set(homes) == set(ray_route._HOMES)
    assert len(homes) > 20
    for name in ray_route.__all__:
        found = getattr(ray_route, name)
        assert name not in homes or found is getattr(sys.modules[homes[name]], name)


def typed() -> dict[str, str]:
    """Return from which module type checkers take each name that is loaded late."""
    (late,) = (node for node in TOP if isinstance(node, ast.If))
    assert ast.unparse(late.test) == "TYPE_CHECKING"
    return {
        alias.name: node.module or ""
        for node in late.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "ask",
    [
        "from ray_route import *",
        "from ray_route import deploy, connect, Deployment, PodAgent, RouteClient",
        "import ray_route; [getattr(ray_route, name) for name in reversed(ray_route.__all__)]",
        "import ray_route, pydoc; pydoc.render_doc(ray_route)",
        "import ray_route, inspect; inspect.getmembers(ray_route)",
    ],
)
def test_all_ways_to_ask_find_all(ask: str) -> None:
    names = set(fresh(f"{ask}\nimport ray_route\nprint(json.dumps(dir(ray_route)))"))
    assert names >= set(ray_route.__all__)


def test_no_public_name_is_that_of_a_module() -> None:
    """Loading the module would put it in the other's place."""
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert {"deploying", "client"} <= modules
    assert set(ray_route.__all__) & modules == set()


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'deplyo'"):
        _ = ray_route.deplyo  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="deplyo"):
        exec("from ray_route import deplyo")


@pytest.mark.slow
def test_functions_that_refer_to_the_package_travel_to_processes_that_have_loaded_nothing() -> None:
    def shown() -> list[str]:
        return [each.__name__ for each in (ray_route.deploy, ray_route.connect)]

    sent = cloudpickle.dumps(shown)
    program = f"import pickle\nprint(json.dumps(pickle.loads({sent!r})()))"
    assert fresh(program) == ["deploy", "connect"]
    assert pickle.loads(pickle.dumps(ray_route.deploy)) is ray_route.deploy


@pytest.mark.slow
def test_threads_that_ask_at_once_get_the_same() -> None:
    program = f"""
import threading, ray_route
names = {[*ray_route._HOMES]!r}
together, got = threading.Barrier(8), []
def ask(names):
    together.wait()
    got.append([(name, id(getattr(ray_route, name))) for name in names])
ways = [names, names[::-1]] * 4
threads = [threading.Thread(target=ask, args=(way,)) for way in ways]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps([len(got), len({{pair for found in got for pair in found}}) - len(names)]))
"""
    assert fresh(program) == [8, 0]
