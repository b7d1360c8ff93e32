"""Every code block of the documentation runs, and the pages say what the sources say.

`python` and `sh` blocks are run as printed. `bash` blocks need what a test has not (a cloud,
Kubernetes, another server, an empty environment): what they name is there, and the command line
understands them. `text` and
`promql` are no commands.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from alone import why_not
from commands import Finished
from helpers import end_router, namespaces_with_routers
from tutorial import PAGE, blocks

import ray_route
from ray_route.cli.app import app, main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if page != PAGE)
# On a real Serve, in tests/serve; on real stores, in test_saved_states.py and tests/store.
RUN_ELSEWHERE = {"serve.md", "stream.md", "keep_states.md"}
RUN, NAMED, TEXT = ("python", "sh"), ("bash",), ("text", "promql")


def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", [*PAGES, PAGE], ids=lambda page: str(page.relative_to(DOCS)))
def test_every_block_is_of_a_known_kind(page: Path) -> None:
    opened = re.findall(r"(?m)^```(\S*)", page.read_text())
    assert set(opened[::2]) <= {*RUN, *NAMED, *TEXT}
    assert not any(opened[1::2])


@pytest.mark.long  # `make package` follows it too
@pytest.mark.timeout(300)
@pytest.mark.skipif(why_not() is not None, reason=f"nobody can be alone here: {why_not()}")
def test_the_tutorial_to_the_letter() -> None:
    commands = Path(sys.executable).parent
    program = [sys.executable, str(ROOT / "tests" / "tutorial.py"), str(commands)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def rooms(ray_session: None) -> Iterator[None]:
    """The tutorial's service, which other pages' commands speak of."""
    (program,) = [text for _, title, text in blocks() if title == "rooms.py"]
    program = program.replace("threading.Event().wait()", "yield")
    body = "\n".join(f"    {line}" for line in program.splitlines())
    names: dict[str, Any] = {"__name__": "rooms_of_the_docs"}
    others = namespaces_with_routers()
    exec(f"def service():\n{body}\n", names)
    running = names["service"]()
    next(running)
    yield
    next(running, None)
    for name in namespaces_with_routers() - others:
        end_router(name)


def test_the_pages_code_runs(rooms: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Pages in order of their names, on the tutorial's service."""
    for page in PAGES:
        if page.name in RUN_ELSEWHERE:
            continue
        names: dict[str, Any] = {"__name__": f"docs_{page.stem}", "ray_route": ray_route}
        for language, _, text in blocks(page):
            if language not in RUN:
                continue
            if language == "python":
                exec(compile(text, str(page), "exec"), names)
                continue
            for line in text.splitlines():
                if line.startswith("ray drain-node "):
                    continue  # it takes a node away: tests/ray/test_multinode.py runs it
                done = run(line, capsys)
                assert done.status == 0, (page, line, done)


def run(line: str, capsys: pytest.CaptureFixture[str]) -> Finished:
    words = line.split()
    assert words.pop(0) == "ray-route", line
    if "-n" not in words:
        words += ["-n", "chat"]  # the session that tests share has more than one
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(words)
    out, err = capsys.readouterr()
    return Finished(int(str(ended.value.code)), out, err)


def test_commands_that_need_a_cluster_are_at_least_understood() -> None:
    lines = [
        line
        for page in PAGES
        for language, _, text in blocks(page)
        for line in re.findall(r"(?m)^(?:ray exec \S+ ')?ray-route ([^'\n]+)", text)
        if language == "bash"
    ]
    assert len(lines) >= 3
    for line in lines:
        name, *words = line.split()
        app.commands[name].make_context(name, words)


def test_what_the_pages_name_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in [*PAGES, PAGE]:
        text = page.read_text()
        for name in re.findall(r"ray-route (?!is\b)([a-z]+)\b", text):
            assert name in {*app.commands, "or"}, (page, name)
        for path in re.findall(r"`?(deploy/[\w./]+\w)", text):
            assert (ROOT / path).exists(), (page, path)
        for target in re.findall(r"`make (\w+)`", text):
            assert f"\n{target}:" in makefile, (page, target)
    for name in re.findall(r"`(\w+)\(uid", (DOCS / "migration.md").read_text()):
        assert hasattr(ray_route.RouteClient, name)
    for name in re.findall(r"`PodAgent\.(\w+)", (DOCS / "migration.md").read_text()):
        assert hasattr(ray_route.PodAgent, name)


def test_every_page_is_in_the_navigation_and_the_other_way_round() -> None:
    text = re.sub(r"!!python\S*", "", (ROOT / "mkdocs.yml").read_text())
    listed = set(re.findall(r"([\w/]+\.md)", str(yaml.safe_load(text)["nav"])))
    there = {str(page.relative_to(DOCS)) for page in [*PAGES, PAGE]}
    made = {"protocol.md", "cli.md", "changes.md"}
    of_others = {"performance.md", "reliability.md", "serve.md"}
    assert there <= listed
    assert listed - there - made <= of_others


def test_the_protocol_page_has_every_script_and_every_key() -> None:
    page = hooks().protocol()
    for path in hooks().LUA.glob("*.lua"):
        assert f"### {path.stem}\n" in page
        head = hooks().header(path)
        assert head.count("\n") >= 1, f"{path.name} has no contract"
        assert head in page
    used = set(re.findall(r'f"(rr:\S*?)"', (ROOT / "ray_route/store/keys.py").read_text()))
    shown = len(re.findall(r"(?m)^\| `rr:", page))
    assert shown == len([key for key in used if "*" not in key])
    assert "`zlib.crc32(uid.encode()) % shards`" in page


def test_the_command_line_page_has_every_command() -> None:
    page = hooks().command_line()
    for name, command in app.commands.items():
        assert f"## {name}\n" in page
        for parameter in command.params:
            assert all(option in page for option in parameter.opts if option.startswith("--"))
