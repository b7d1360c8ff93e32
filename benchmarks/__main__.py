"""Run one benchmark or all: `python -m benchmarks NAME [--quick] [--json FILE]`."""

from __future__ import annotations

import importlib
from pathlib import Path

import click
from rich.console import Console

from benchmarks.harness import RESULTS, machine, others_took, save, show

FOLDER = Path(__file__).parent
NOT_ONE = (
    "__init__",
    "__main__",
    "conversation_trace",
    "harness",
    "peers",
    "processors",
    "replay",
    "setting",
)
NAMES = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem not in NOT_ONE)


@click.command()
@click.argument("name", type=click.Choice([*NAMES, "all"]))
@click.option("--quick", is_flag=True, help="Fewer uids and runs: a look, not a result.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Where to write the result.")
def main(name: str, path: Path | None, *, quick: bool) -> None:
    """Measure, print tables, and write JSON with plots beside it."""
    console = Console()
    about = machine()
    console.print(", ".join(f"{key} {value}" for key, value in about.items()))
    for one in NAMES if name == "all" else [name]:
        others_took.clear()
        report = importlib.import_module(f"benchmarks.{one}").run(quick=quick)
        show(report, console)
        file = path if path is not None and name != "all" else RESULTS / f"{one}.json"
        save(report, about, file, quick=quick)
        console.print(f"written to {file}")


if __name__ == "__main__":
    main()
