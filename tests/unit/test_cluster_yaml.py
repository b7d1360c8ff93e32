"""cluster.yaml is one that Ray's cluster launcher takes."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).parents[2] / "cluster.yaml"


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return loaded


def validate(config: dict[str, Any]) -> dict[str, Any]:
    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_the_launcher_accepts_it(config):
    prepared = validate(config)
    types = prepared["available_node_types"]
    assert prepared["head_node_type"] in types
    assert sum(kind["min_workers"] for kind in types.values()) > 0


@pytest.mark.parametrize(
    "mistake",
    [
        lambda config: config.update(max_worker=1),
        lambda config: config.update(head_node_type="haed"),
        lambda config: config.update(setup_commands="pip install"),
        lambda config: config["available_node_types"]["worker"].update(min_workers="two"),
    ],
    ids=["unknown key", "unknown type", "no list", "no number"],
)
def test_this_test_would_notice_a_mistake(config, mistake):
    mistake(config)
    with pytest.raises((ValidationError, ValueError, TypeError)):
        validate(config)


def test_the_form_for_own_machines_that_its_comment_shows_is_accepted_too(config):
    shown = re.search(r"provider: (\{type: local.*\})", FILE.read_text())
    assert shown
    config["provider"] = yaml.safe_load(shown[1])
    for name in ("available_node_types", "head_node_type", "max_workers"):
        del config[name]
    validate(config)


def test_every_machine_gets_the_package_and_the_environment(config):
    setup = "\n".join(config["setup_commands"])
    (mount,) = (path for path, local in config["file_mounts"].items() if local == ".")
    assert f"pip install {mount}" in setup
    (env,) = (path for path in config["file_mounts"] if path.endswith(".env"))
    assert Path(env).name in setup
    assert "RAY_ROUTE_REDIS_URL=" in FILE.read_text()


def test_it_holds_no_secret(config):
    assert "://" not in yaml.safe_dump(config)
