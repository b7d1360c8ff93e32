"""Pages that are made from the sources, so that they can't go stale, for MkDocs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

from ray_route.cli.app import app
from ray_route.store.keys import Keys

ROOT = Path(__file__).parent.parent
LUA = ROOT / "ray_route" / "store" / "lua"
_NAMES = Keys("NAMESPACE", 256)
_SHARD: Any = "SHARD"
KEYS = {
    _NAMES.link(_SHARD, "SERVICE", "UID"): Keys.link,
    _NAMES.counter(_SHARD): Keys.counter,
    _NAMES.pods("SERVICE"): Keys.pods,
    _NAMES.wanted("SERVICE"): Keys.wanted,
    _NAMES.services: Keys.services,
    _NAMES.log: Keys.log,
    _NAMES.meta: Keys.meta,
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    pages: dict[str, Callable[[], str]] = {
        "protocol.md": protocol,
        "cli.md": command_line,
        "changes.md": (ROOT / "CHANGELOG.md").read_text,
    }
    for name, make in pages.items():
        files.append(File.generated(config, name, content=make()))
    return files


def protocol() -> str:
    """Write the page of keys and scripts, from `keys.py` and the headers of the scripts."""
    return "\n".join(_protocol())


def _protocol() -> Iterator[str]:
    yield "# Protocol\n"
    yield "What is in Redis, and every script's contract: taken from the sources.\n"
    yield f"## Keys\n\n{_about(Keys)}\n\n| key | holds |\n| --- | --- |"
    for name, maker in KEYS.items():
        yield f"| `{name}` | {_about(maker).partition(chr(10))[0]} |"
    yield f"\nThe shard of a uid is `{_formula()}`.\n\n## Scripts\n"
    for path in sorted(LUA.glob("*.lua")):
        yield f"### {path.stem}\n\n```text\n{header(path)}\n```\n"


def _about(thing: Any) -> str:
    text = (thing.fget if isinstance(thing, property) else thing).__doc__ or ""
    return re.sub(r"\n +", "\n", text).strip()


def _formula() -> str:
    source = (ROOT / "ray_route" / "store" / "keys.py").read_text()
    found = re.search(r"def shard\(.*?return (.*?)\n", source, re.DOTALL)
    assert found is not None
    return found[1].replace("self.", "")


def header(path: Path) -> str:
    """Return the comment at the head of a script."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("--"):
            break
        lines.append(line.removeprefix("--").removeprefix(" "))
    return "\n".join(lines)


def command_line() -> str:
    """Write the page of commands from their help."""
    parts = ["# Command line\n", _help(app, "ray-route")]
    parts += [f"## {name}\n\n{_help(app.commands[name], name)}" for name in sorted(app.commands)]
    return "\n".join(parts)


def _help(command: click.Command, name: str) -> str:
    parent = None if command is app else click.Context(app, info_name="ray-route")
    context = click.Context(command, info_name=name, parent=parent, max_content_width=96)
    return f"```text\n{command.get_help(context)}\n```\n"
