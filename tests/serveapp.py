"""A running Serve application as tests see it."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from helpers import eventually, unique_name
from ray import serve
from ray.serve.handle import DeploymentHandle
from served import Chat, sticky

import ray_route

_ANSWER_S = 30.0


@dataclass
class App:
    """A running application, whose sessions are those of one service."""

    name: str
    url: str
    handle: DeploymentHandle[Any]
    client: ray_route.RouteClient
    service: str
    redeploy: Callable[..., DeploymentHandle[Any]]

    def say(self, session: str, seconds: float = 0.0) -> dict[str, Any]:
        return self.saying(session, seconds).result(timeout_s=_ANSWER_S)

    def saying(self, session: str, seconds: float = 0.0) -> Any:
        return self.handle.options(session_id=session).say.remote(seconds)

    def homes(self, sessions: Iterable[str]) -> dict[str, str]:
        """Ask for every session's replica, all at once."""
        under_way = {session: self.saying(session) for session in sessions}
        return {
            session: answer.result(timeout_s=_ANSWER_S)["replica"]
            for session, answer in under_way.items()
        }

    def get(self, session: str) -> dict[str, Any]:
        """Send one request over HTTP."""
        request = urllib.request.Request(self.url, headers={"x-session-id": session})
        with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
            return json.load(answer)

    def gets(self, sessions: Iterable[str]) -> dict[str, str]:
        """Ask for every session's replica over HTTP, some at a time."""
        wanted = list(sessions)
        with ThreadPoolExecutor(8) as pool:
            return dict(
                zip(
                    wanted,
                    (answer["replica"] for answer in pool.map(self.get, wanted)),
                    strict=True,
                )
            )

    def alive(self) -> dict[str, int]:
        """Return the pod of each living replica."""
        return {
            pod.actor.rpartition("#")[2]: index
            for index, pod in self.client.pods(self.service).items()
            if pod.life is ray_route.Life.ALIVE and pod.state is ray_route.RoutingState.READY
        }


class Walk:
    """Asks for all sessions again and again, in a thread, and notes where each was, in order."""

    def __init__(self, app: App, names: list[str]) -> None:
        self._app = app
        self._stopping = threading.Event()
        self.path = {name: [home] for name, home in app.homes(names).items()}
        self.errors: list[Exception] = []
        self.rounds = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Walk:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "a request hangs"

    def _run(self) -> None:
        while not self._stopping.wait(0.05):  # the cluster needs the machine for what it does
            under_way = {name: self._app.saying(name) for name in self.path}
            for name, answer in under_way.items():
                self._note(name, answer)
            self.rounds += 1

    def _note(self, name: str, answer: Any) -> None:
        try:
            home = answer.result(timeout_s=_ANSWER_S)["replica"]
        except Exception as error:  # noqa: BLE001 - the test judges
            self.errors.append(error)
            return
        if home != self.path[name][-1]:
            self.path[name].append(home)

    def go_on(self, rounds: int = 2) -> None:
        """Wait until every session has been asked for anew."""
        until = self.rounds + rounds
        eventually(lambda: self.rounds >= until, "the walk goes on", 30)

    def moved(self) -> dict[str, list[str]]:
        return {name: path for name, path in self.path.items() if len(path) > 1}


def end_application(name: str) -> None:
    """End an application, and wait until Serve has none of that name."""
    serve.delete(name, _blocking=False)
    eventually(lambda: name not in serve.status().applications, "the application is gone", 30)


Run = Callable[..., App]


def runner(serve_url: str, directory: ray_route.RouteClient, made: list[str]) -> Run:
    def run(
        replicas: int = 4, router: dict[str, Any] | None = None, front: Any = None, **options: Any
    ) -> App:
        name = unique_name()
        made.append(name)
        config = sticky(**{"namespace": directory.namespace, **(router or {})})

        def deploy(replicas: int, version: str = "1") -> DeploymentHandle[Any]:
            count = {} if "autoscaling_config" in options else {"num_replicas": replicas}
            chat = Chat.options(request_router_config=config, **count, **options)
            # As with a configuration file that changes nothing else; `serve.run` by itself takes
            # every deployment for a new version, and replaces all replicas.
            chat._version = version
            app = front.bind(chat.bind()) if front else chat.bind()
            return serve.run(app, name=name, route_prefix=f"/{name}")

        handle = deploy(replicas)
        return App(name, f"{serve_url}/{name}", handle, directory, f"{name}.Chat", deploy)

    return run


def sessions(count: int) -> list[str]:
    """Name sessions that nobody else uses."""
    prefix = unique_name()
    return [f"{prefix}-{number}" for number in range(count)]
