"""Hands what this process has counted to Ray, which exports it with its own metrics.

One thread per process, every few seconds. Where Ray's metrics agent does not run (it comes with
`ray[default]`), Ray takes the numbers and shows them to nobody.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import ray
from ray.util import metrics as ray_metrics

from ray_route.runtime.metrics import METRICS, Kind, Labels, Meter, Metric, meters

logger = logging.getLogger(__name__)

PERIOD_S = 5.0

_BY_NAME = {metric.name: metric for metric in METRICS}
_lock = threading.Lock()
_thread: threading.Thread | None = None
_made: dict[str, Any] = {}
_told: dict[tuple[str, str, Labels], int] = {}


def start() -> None:
    """Begin to tell Ray what is counted in this process, unless that is under way."""
    global _thread  # noqa: PLW0603 - one per process
    with _lock:
        if _thread is None or not _thread.is_alive():  # a forked process has none
            _thread = threading.Thread(target=_run, name="ray_route-metrics", daemon=True)
            _thread.start()


def _run() -> None:
    pause = threading.Event()
    while not pause.wait(PERIOD_S):
        try:
            flush()
        except Exception:
            logger.exception("metrics could not be told to Ray")


def flush() -> None:
    """Tell Ray everything now, if this process has joined one."""
    if not ray.is_initialized():
        return
    with _lock:
        for each in meters():
            _tell(each)


def _tell(meter: Meter) -> None:
    counts = dict(meter.counts)
    for key, read in list(meter.tallies.items()):
        counts[key] = counts.get(key, 0) + read()
    for (name, labels), count in counts.items():
        series = (meter.namespace, name, labels)
        new = count - _told.get(series, 0)
        if new > 0:
            _ray_metric(name).inc(new, tags=_tags(name, meter, labels))
        _told[series] = count
    for (name, labels), samples in list(meter.samples.items()):
        tags = _tags(name, meter, labels)
        for _ in range(len(samples)):
            _ray_metric(name).observe(samples.popleft(), tags=tags)
    for (name, _), gauge in list(meter.gauges.items()):
        for labels, value in gauge():
            _ray_metric(name).set(value, tags=_tags(name, meter, labels))


def _tags(name: str, meter: Meter, labels: Labels) -> dict[str, str]:
    return {"namespace": meter.namespace, **dict(zip(_BY_NAME[name].labels, labels, strict=True))}


def _ray_metric(name: str) -> Any:
    if name not in _made:
        _made[name] = _make(_BY_NAME[name])
    return _made[name]


def _make(metric: Metric) -> Any:
    keys = ("namespace", *metric.labels)
    if metric.kind is Kind.HISTOGRAM:
        bounds = list(metric.boundaries)
        return ray_metrics.Histogram(metric.name, metric.about, bounds, keys)
    made = ray_metrics.Counter if metric.kind is Kind.COUNTER else ray_metrics.Gauge
    return made(metric.name, metric.about, keys)
