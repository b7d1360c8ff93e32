"""The manifests under deploy/kuberay are what KubeRay's published resources allow, and no more."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from jsonschema import Draft7Validator, ValidationError

from ray_route.store.embedded import EmbeddedServer
from ray_route.store.namespaces import check_safe
from ray_route.store.url import parse_url

FOLDER = Path(__file__).parents[2] / "deploy" / "kuberay"
CRDS = Path(__file__).resolve().parents[3] / "shared" / "data" / "kuberay"
FILES = {"RayCluster": "ray.io_rayclusters.yaml", "RayService": "ray.io_rayservices.yaml"}


def closed(schema: Any) -> Any:
    """Refuse fields that a schema does not name: a misspelt one would be dropped in silence."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {name: closed(part) for name, part in schema.items()}
    if "properties" in schema and "additionalProperties" not in schema:
        parts["additionalProperties"] = False
    return parts


@cache
def published(kind: str) -> Draft7Validator:
    """Read the schema of a resource's version v1."""
    whole = yaml.load((CRDS / FILES[kind]).read_text(), yaml.CSafeLoader)
    (v1,) = [each for each in whole["spec"]["versions"] if each["name"] == "v1"]
    return Draft7Validator(closed(v1["schema"]["openAPIV3Schema"]))


def load(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def validate(manifest: dict[str, Any]) -> None:
    assert manifest["apiVersion"] == "ray.io/v1"
    assert set(manifest["metadata"]) == {"name"}
    published(manifest["kind"]).validate(manifest)


def clusters() -> list[dict[str, Any]]:
    return [load("raycluster.yaml")["spec"], load("rayservice.yaml")["spec"]["rayClusterConfig"]]


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["raycluster.yaml", "rayservice.yaml"])
def test_the_fields_are_kuberays(name: str) -> None:
    validate(load(name))


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "mistake",
    [
        lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda spec: spec["workerGroupSpecs"][0].pop("groupName"),
        lambda spec: spec.update(workerGroupSpec=[]),
        lambda spec: spec["workerGroupSpecs"][0].update(replicas="2"),
        lambda spec: spec["headGroupSpec"]["template"]["spec"]["containers"][0].update(imaje="x"),
    ],
    ids=["number for a string", "missing", "misspelt", "string for a number", "misspelt deep"],
)
def test_this_test_would_notice_a_mistake(mistake: Any) -> None:
    manifest = copy.deepcopy(load("raycluster.yaml"))
    mistake(manifest["spec"])
    with pytest.raises(ValidationError):
        validate(manifest)


@pytest.mark.parametrize("spec", clusters(), ids=["cluster", "service"])
def test_versions_agree_and_every_machine_knows_the_store(spec: dict[str, Any]) -> None:
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"].startswith(f"rayproject/ray:{spec['rayVersion']}-")
        (variable,) = container["env"]
        assert variable["name"] == "RAY_ROUTE_REDIS_URL"
        assert "value" not in variable, "a URL holds a password: it comes from a secret"
    assert spec["rayVersion"].split(".")[:2] == ray.__version__.split(".")[:2]
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]


def test_the_application_is_one_that_serve_takes() -> None:
    config = yaml.safe_load(load("rayservice.yaml")["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    assert set(application) == {"name", "import_path", "route_prefix"}


def redis_parts() -> dict[str, dict[str, Any]]:
    parts = yaml.safe_load_all((FOLDER / "redis.yaml").read_text())
    return {part["kind"]: part for part in parts}


def test_redis_gets_settings_that_a_real_server_takes_and_that_are_safe() -> None:
    lines = redis_parts()["ConfigMap"]["data"]["redis.conf"].splitlines()
    settings = dict(line.split(" ", 1) for line in lines if line and not line.startswith("#"))
    assert settings.pop("dir") == "/data"
    with EmbeddedServer("redis") as server:
        from redis import Redis  # noqa: PLC0415 - a plain client, as an operator has one

        url = parse_url(server.url)
        host, port = url.nodes[0]
        with Redis(host=host, port=port, password=url.password) as plain:
            for name, value in settings.items():
                plain.config_set(name, value)
            info = plain.info()
    check_safe("here", info)
    assert info["aof_enabled"] == 1
    assert info["maxmemory_policy"] == "noeviction"
    assert info["maxmemory"] > 0


def test_redis_parts_name_each_other_and_hold_no_password() -> None:
    parts = redis_parts()
    assert set(parts) == {"ConfigMap", "Service", "StatefulSet"}
    spec = parts["StatefulSet"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert labels == parts["Service"]["spec"]["selector"] == spec["selector"]["matchLabels"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert pod["volumes"][0]["configMap"]["name"] == parts["ConfigMap"]["metadata"]["name"]
    assert "value" not in container["env"][0]
    memory = container["resources"]["limits"]["memory"]
    assert memory == "3Gi", "more than maxmemory: copies on write while the file is rewritten"
