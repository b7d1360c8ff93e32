"""Prometheus' own tool reads the alert rules, and each query of the dashboard."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "ray_route.rules.yaml"
PROMTOOL = shutil.which("promtool")
# CI's script installs it, where there are Debian's packages.
pytestmark = pytest.mark.skipif(
    PROMTOOL is None, reason="there is no promtool: apt-get install prometheus"
)


def promtool(*words: object) -> str:
    """Run it; return what it said, or fail with that."""
    done = subprocess.run(
        [str(PROMTOOL), *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def queries() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana" / "ray_route.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def as_rules(folder: Path, expressions: list[str]) -> Path:
    """Write queries as recording rules, with what Grafana would put in for its variables."""
    for_grafana = {"$namespace": "game|chat", "$__rate_interval": "1m"}
    rules = []
    for number, text in enumerate(expressions):
        for variable, value in for_grafana.items():
            text = text.replace(variable, value)  # noqa: PLW2901 - one after the other
        rules.append({"record": f"panel:{number}", "expr": text})
    path = folder / "dashboard.rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    return path


def test_the_alert_rules_are_rules() -> None:
    alerts = len(re.findall("- alert:", RULES.read_text()))
    assert f"SUCCESS: {alerts} rules found" in promtool("check", "rules", RULES)


def test_every_query_of_the_dashboard_is_one(tmp_path: Path) -> None:
    found = queries()
    said = promtool("check", "rules", as_rules(tmp_path, found))
    assert f"SUCCESS: {len(found)} rules found" in said


def test_this_test_would_notice_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="could not parse expression"):
        promtool("check", "rules", as_rules(tmp_path, [queries()[0].replace("rate(", "rate")]))
    with pytest.raises(AssertionError, match="could not parse expression"):
        promtool("check", "rules", as_rules(tmp_path, ['up{namespace=~"$nobody"}[', "up"]))
