"""The formula of the sizing page, as it stands there, against loads that it was not taken from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ray

from benchmarks.capacity import LEASE_S, OPTIONS, Fleet, Servers, Spent
from benchmarks.harness import Report, Sample, others_took, wait_for_quiet
from benchmarks.setting import address, deployed, local_client

QUESTION = "what a namespace takes by docs/howto/sizing.md, and what it takes"
PAGE = Path(__file__).parents[1] / "docs" / "howto" / "sizing.md"
_ROW = re.compile(r"\| ([^|]+) \| `(P x [^`]+|0\.[^`]+)` \|")
# Pods, sessions in each of some processes, users of each session, and whether new users come too.
_LOADS = ((6, 12, 400, False), (2, 40, 30, True))
_FLEETS = 2


def formula() -> dict[str, str]:
    """Return the expressions of the page, by what they say."""
    return {what: text.replace(" x ", " * ") for what, text in _ROW.findall(PAGE.read_text())}


def run(*, quick: bool) -> Report:
    """Measure each load for some leases."""
    report = Report("sizing", QUESTION, ("load", "what", "formula", "seen", "times"))
    for pods, sessions, users, with_new in _LOADS:
        with (
            local_client("bench-sizing", **OPTIONS) as client,
            deployed(client, replicas=pods),
        ):
            others_took.append(wait_for_quiet())
            about = client.namespace, address(client)
            fleets = [Fleet.remote(*about) for _ in range(_FLEETS + 1)]
            opened = [sessions] * _FLEETS + [1]
            ray.get([one.open.remote(n) for one, n in zip(fleets, opened, strict=True)])
            ray.get([one.meet.remote(0, users) for one in fleets])
            seconds = (2 if quick else 5) * LEASE_S
            with Servers(client).during() as watch:
                using = [one.use.remote(0, users, seconds) for one in fleets[:_FLEETS]]
                new = fleets[-1].place.remote(seconds, 1) if with_new else ray.put(0)
                told, placed = ray.get(using), ray.get(new)
            shards = client._session.namespace.config.shards
        load = f"{_FLEETS * sessions} sessions of {users}, {pods} pods" + ", new users" * with_new
        _, read, reported = (sum(some) / watch.took_s for some in zip(*told, strict=True))
        given = {"P": _FLEETS * sessions + 2, "K": pods, "R": read, "D": reported}
        given |= {"N": placed / watch.took_s, "shards": shards}
        _compare(report, load, given, watch)
    return report


def _compare(report: Report, load: str, given: dict[str, Any], watch: Spent) -> None:
    seen = {
        "Redis, processors": watch.redis_s,
        "the router, processors": watch.router_s,
        "change stream, bytes a second": watch.sent_bytes,
    }
    expressions = formula()
    for what, spent in seen.items():
        said = eval(expressions[what], {"min": min}, given)  # noqa: S307 - our own page
        got = spent / watch.took_s
        report.rows.append((load, what, f"{said:,.3g}", f"{got:,.3g}", f"{got / said:.2f}"))
        report.aim(f"{load}: {what}, of the formula", "at most", 2, Sample([got / said]))
    for name in ("R", "D", "N"):
        report.rows.append((load, name, "", f"{given[name]:,.4g}", ""))
