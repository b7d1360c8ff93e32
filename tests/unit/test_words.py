"""One word, one meaning: names that gave way to the field's words do not come back."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("ray_route", "tests", "benchmarks", "examples", "docs", "deploy")
ENDINGS = {".py", ".lua", ".md", ".toml", ".yaml", ".yml", ".json"}

# An old name (where it is used as one), and the field's word for what it meant.
GONE = {
    r"\bvigil\b|\bSilenceWatch\b": "failure_detector",
    r"\bcensus\b": "membership",
    r"\badmission\b.*\bMembership\b": "PodLease",
    r"\btenure\b": "index_lease",
    r"\battendance\b": "command_loop",
    r"\brouter[./]orders\b|\bfetch_orders\b|\bnumbered orders?\b": "commands",
    r"\bledger\b": "link_table",
    r"\brouter[./]choice\b|\bChooser\b": "placer",
    r"\bannouncer?\b": "change_writer",
    r"\bclient[./]watch\b|\bclass Watch\b": "change_reader",
    r"\brouter[./]replay\b|\breplayed_links\b": "recovery",
    r"\bpod[./]fenced\b": "pod_actor",
    r"\bgateway\b": "namespace",
    r"\bray_route[./]steps\b|\bSteps\[": "waiting",
    r"\bray_route[./]stage\b|\bset_stage\b": "bootstrap",
    r"\bray_route[./]hosting\b": "embedded_actor",
    r"\bLanding\b|\bTravelling\b": "shared_future",
    r"\bserving[./](?:desk|keeper|notices)\b|\bclass (?:Desk|Keeper|Notices)\b": (
        "session_directory, replica_agent, use_reports"
    ),
    r"\bclient[./](?:driver|awaited)\b": "sync_client, async_client",
    r"\bcli[./]site\b|\bat_site\b": "cluster",
    r"\bBirth\b": "PodSpec",
    r"\b(?:keeper\.)?Post\(|\bclass Post\b": "ServiceAddress",
    r"\bKept\b": "RememberedLink",
    r"\b_bury\b|\bbury_if_ended\b": "_declare_dead",
    r"\bclass Load\b": "Batch, where calls are meant: a load is a pod's",
}
OLD_FILES = {
    "announcer", "attendance", "awaited", "census", "choice", "desk", "driver", "fenced", "gateway",
    "hosting", "keeper", "landing", "ledger", "notices", "orders", "site", "stage", "steps",
    "tenure", "vigil", "watch",
}  # fmt: skip


@cache
def texts() -> dict[Path, str]:
    """What a reader meets: code, docs, dashboards."""
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*"))]
    files += ROOT.glob("*.md")
    own = {Path(__file__).name, "CHANGELOG.md"}
    return {
        file: file.read_text() for file in files if file.suffix in ENDINGS and file.name not in own
    }


@cache
def in_one_text(*, lowered: bool) -> str:
    text = "\n".join(texts().values())
    return text.lower() if lowered else text


def places(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file, text in texts().items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


@pytest.mark.parametrize("old", GONE)
def test_an_old_name_is_gone(old: str) -> None:
    lowered = old.islower()
    # Without the edges of words it is in more lines, and looked for six times as fast.
    if re.search(old.replace(r"\b", ""), in_one_text(lowered=lowered)):
        found = places(re.compile(old, re.IGNORECASE if lowered else 0))
        assert not found, f"say {GONE[old]}"


def test_no_file_has_an_old_name() -> None:
    found = [file for file in (ROOT / "ray_route").rglob("*.py") if file.stem in OLD_FILES]
    assert not found
