"""Metrics: the table, the counting, and what dashboard, alerts and docs say of them."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from pathlib import Path
from timeit import repeat
from types import SimpleNamespace

import pytest
import yaml

from ray_route.controller.figures import Figures
from ray_route.runtime.metrics import (
    CALL_REPEATS,
    CALL_SECONDS,
    LOOKUPS,
    METRICS,
    NEAR_CACHE_LINKS,
    PODS_WANTED,
    SERVICE_PROBLEMS,
    Kind,
    Meter,
    meter,
)

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/ray_route.json").read_text())
RULES = yaml.safe_load((ROOT / "deploy/prometheus/ray_route.rules.yaml").read_text())
_SERIES = {
    name: metric
    for metric in METRICS
    for name in (
        [f"{metric.exported}{part}" for part in ("_bucket", "_sum", "_count")]
        if metric.kind is Kind.HISTOGRAM
        else [metric.exported]
    )
}


def panels() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def alerts() -> list[str]:
    return [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]


def test_names_are_unique_and_no_label_holds_a_uid():
    assert len({metric.name for metric in METRICS}) == len(METRICS) > 15
    assert not {"uid", "epoch"} & {label for metric in METRICS for label in metric.labels}
    assert all(metric.name.startswith("route_") and metric.about for metric in METRICS)


@pytest.mark.parametrize("expression", [*panels(), *alerts()])
def test_what_the_dashboard_and_the_alerts_use_exists(expression):
    names = re.findall(r"ray_route_\w+", expression)
    assert names
    known = {label for name in names for label in _SERIES[name].labels} | {"namespace", "le"}
    used = {
        label.strip()
        for group in re.findall(r"by \((.*?)\)", expression)
        for label in group.split(",")
    }
    used |= set(re.findall(r"(\w+)=~?\"", expression))
    assert used <= known


def test_the_dashboard_shows_every_metric_and_its_panels_do_not_overlap():
    shown = {_SERIES[name] for text in panels() for name in re.findall(r"ray_route_\w+", text)}
    assert {metric.name for metric in METRICS} == {metric.name for metric in shown}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)


def test_every_alert_says_what_to_do():
    for group in RULES["groups"]:
        for rule in group["rules"]:
            assert set(rule["annotations"]) == {"summary", "action"}, rule["alert"]
            assert rule["labels"]["severity"] in ("critical", "warning")


def test_the_docs_table_is_this_table():
    page = (ROOT / "docs/metrics.md").read_text()
    rows = dict(re.findall(r"^\| `(ray_route_\w+)` \| (\w+) \|", page, re.MULTILINE))
    assert rows == {metric.exported: metric.kind.value for metric in METRICS}
    for metric in METRICS:
        labels = ", ".join(metric.labels) or "none"
        assert f"| `{metric.exported}` | {metric.kind.value} | {labels} | {metric.about} |" in page


def test_no_count_is_lost_between_threads():
    meter, each = Meter("n"), 20_000

    def work() -> None:
        for _ in range(each):
            meter.count(CALL_REPEATS, "svc", "fenced")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.counts["route_call_repeats", ("svc", "fenced")] == 8 * each


def test_a_tally_stays_counted_when_its_owner_goes():
    meter, hits = Meter("n"), [7]
    meter.tally(LOOKUPS, ("near", "hit"), lambda: hits[0])
    meter.gauge(NEAR_CACHE_LINKS, lambda: [((), 1)])
    meter.forget(LOOKUPS, NEAR_CACHE_LINKS)
    hits[0] = 99
    assert meter.counts["route_lookups", ("near", "hit")] == 7
    assert not meter.gauges
    assert not meter.tallies


def test_samples_are_bounded():
    meter = Meter("n")
    for number in range(30_000):
        meter.observe(CALL_SECONDS, number, "svc")
    assert len(meter.samples["route_call_seconds", ("svc",)]) == 20_000


def test_a_count_is_cheap():
    """Generous by a factor of ten: a shared machine."""
    meter = Meter("n")

    def count() -> None:
        meter.count(LOOKUPS, "router", "link")

    best = min(repeat(count, number=10_000, repeat=5, timer=time.thread_time))
    assert best / 10_000 < 4e-6


def test_what_a_controller_keeps_is_counted_and_its_records_say_of_what(caplog):
    name = "figures-of-a-controller"
    spec = SimpleNamespace(namespace=name, service="svc")
    figures, counted = Figures(SimpleNamespace(spec=spec)), meter(name)
    wishes = SimpleNamespace(wanted=None)
    figures.begin(wishes, lambda: 2)
    gauges = [counted.gauges[it.name, ("svc",)] for it in (PODS_WANTED, SERVICE_PROBLEMS)]
    assert [gauge() for gauge in gauges] == [[(("svc",), 0)], [(("svc",), 2)]]
    wishes.wanted = SimpleNamespace(replicas=4)
    assert gauges[0]() == [(("svc",), 4)]
    figures.made_anew(2)
    figures.start_failed(3)
    figures.upgrade_ended(is_undone=True)
    assert counted.counts["route_pods_made_anew", ("svc",)] == 2
    assert counted.counts["route_pod_start_failures", ("svc", "3")] == 1
    assert counted.counts["route_upgrades", ("svc", "undone")] == 1
    figures.log(logging.getLogger("ray_route"), logging.ERROR, "it is %s", "late", pod=3)
    (record,) = caplog.records
    assert (record.getMessage(), record.namespace, record.service, record.pod) == (
        *("it is late", name, "svc"),
        3,
    )
