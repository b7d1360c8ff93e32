"""The code of docs/serve.md runs as printed; that for LLMs is compiled only."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import Any

import pytest
from helpers import end_router, eventually
from ray import serve
from serveapp import end_application
from tutorial import blocks

import ray_route
from ray_route.cli.app import main

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "serve.md"


def code() -> list[str]:
    return [text for language, _, text in blocks(PAGE) if language == "python"]


def test_the_pages_code_runs(serve_url: str, capsys: Any) -> None:
    home, looking, composition, llm, _ = code()
    names: dict[str, Any] = {"__name__": "__main__", "ray_route": ray_route}
    body = "\n    def say(self, text):\n        return text\n"
    exec(home.replace(" ...  # any deployment, unmodified", body), names)
    handle = serve.run(names["Chat"].bind(), name="app", route_prefix="/page")
    session = handle.options(session_id="session 42")
    assert session.say.remote("hello").result(timeout_s=60) == "hello"
    with ray_route.connect("serve") as early:  # the page moves a session to the last replica
        eventually(lambda: len(early.pods("app.Chat")) == 4, "all replicas have joined")
    exec(looking, names)
    assert "session 42" in capsys.readouterr().out
    client = names["client"]
    assert client.compute_linked_pod("session 42", "app.Chat").pod == 3
    assert session.say.remote("again").result(timeout_s=60) == "again"
    with pytest.raises(SystemExit) as ended:
        main(["where", "session 42", "-n", "serve"])
    assert ended.value.code in (0, None)
    assert "app.Chat" in capsys.readouterr().out
    exec(composition, names)
    assert names["current_session"]() is None
    compile(llm, str(PAGE), "exec")
    end_application("app")
    client.close()
    end_router("serve")


def test_the_pages_ingress_calls_pods(serve_url: str) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(code()[-1], names)
    try:
        url = f"{serve_url}/lobby?room=ann&text=hello"
        answers = [urllib.request.urlopen(url, timeout=60).read() for _ in range(8)]
        assert answers == [str(count).encode() for count in range(1, 9)], "whichever replica asks"
    finally:
        end_application("lobby")
        names["pods"].shutdown()
        names["client"].close()
        end_router("lobby")
