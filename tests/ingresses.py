"""Sends sessions through one of Serve's ways in, and prints what became of them. See its test.

Each kind needs a cluster of its own environment, so each is a program: `ingresses.py KIND`, or
`ingresses.py KIND APPLICATION...` for some of its applications.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

Ask = Callable[[str], tuple[int, Any]]

KIND = sys.argv[1] if __name__ == "__main__" else ""
HA, DIRECT, FAST = (
    "RAY_SERVE_ENABLE_HA_PROXY",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED",
)
IN_CLUSTER = {
    "proxy": {},
    "direct": {DIRECT: "1"},
    "fast": {FAST: "1"},
    "haproxy": {HA: "1"},
    "haproxy_by_one_who_does_not_know": {HA: "1"},
}
SERVICER = "ray.serve.generated.serve_pb2_grpc.add_UserDefinedServiceServicer_to_server"
SESSIONS, ROUNDS = 12, 4


def ports() -> dict[str, str]:
    """Return ports and paths that no other cluster of this machine uses."""
    from ray_route.store.embedded import free_port  # noqa: PLC0415 - before Serve is imported

    base = tempfile.mkdtemp(prefix="hap")
    paths = {"SOCKET_PATH": "a", "CONFIG_FILE_LOC": "c", "SERVER_STATE_FILE": "s"}
    own = {f"RAY_SERVE_HAPROXY_{name}": f"{base}/{file}" for name, file in paths.items()}
    own |= {"RAY_SERVE_HAPROXY_SERVER_STATE_BASE": base}
    own |= {"RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{base}/m"}
    names = "FALLBACK_PROXY_HTTP FALLBACK_PROXY_GRPC HAPROXY_METRICS HAPROXY_STATS"
    own |= {f"RAY_SERVE_{name}_PORT": str(free_port()) for name in names.split()}
    # Serve kills a proxy that is not ready after 5 s, as none is on a busy machine, and us with it.
    own |= {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
    first = free_port()
    own |= {"RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first)}
    own |= {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0"}
    return own | {"RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + 100)}


def begin() -> None:
    """Have the cluster's processes see its environment; this program's own may differ."""
    os.environ.update(ports() | IN_CLUSTER[KIND])
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    import ray  # noqa: PLC0415 - it reads the environment

    ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    if KIND.endswith("who_does_not_know"):
        del os.environ[HA]


def get(port: int, path: str, method: str, session: str) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        headers={"x-session-id": session},
        data=b"{}" if method == "POST" else None,
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@contextmanager
def running() -> Iterator[tuple[int, int]]:
    from ray import serve  # noqa: PLC0415 - it reads the environment

    from ray_route.store.embedded import free_port  # noqa: PLC0415

    port = free_port()
    grpc = {"port": free_port(), "grpc_servicer_functions": [SERVICER]}
    serve.start(http_options={"host": "127.0.0.1", "port": port}, grpc_options=grpc)
    yield port, grpc["port"]
    serve.shutdown()


def apps() -> dict[str, Any]:
    """Return the applications of this kind, by name."""
    from served import Chat, Front, Greeter, Picker, sticky  # noqa: PLC0415

    def chat(**kwargs: Any) -> Any:
        options = {"request_router_config": sticky(**kwargs), "num_replicas": 3}
        return Chat.options(**options)

    inner = {"inner": Front.options(num_replicas=2).bind(chat().bind())}
    if KIND == "haproxy":
        refused(chat().bind())
        server = chat().bind()
        return inner | {"picked": server._with_ingress_request_router(Picker.bind(server))}
    if KIND == "proxy":
        router = {"request_router_config": sticky(), "num_replicas": 3}
        inner["grpc"] = Greeter.options(name="Chat", **router).bind()
    strays = {
        on_stray: chat(on_stray=on_stray).bind() for on_stray in ("serve", "refuse", "forward")
    }
    return inner | strays


def refused(app: Any) -> None:
    """See that Serve itself refuses an ingress deployment with a router of its own."""
    from ray import serve  # noqa: PLC0415 - it reads the environment
    from ray.serve.exceptions import RayServeException  # noqa: PLC0415

    with pytest.raises(RayServeException, match="custom"):
        serve.run(app, name="no", route_prefix="/no")


def by_grpc(port: int, app: str, session: str) -> tuple[int, Any]:
    """Send one gRPC request by Serve's own example of a service."""
    import grpc  # noqa: PLC0415 - after Ray
    from ray.serve.generated import serve_pb2, serve_pb2_grpc  # noqa: PLC0415

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = serve_pb2_grpc.UserDefinedServiceStub(channel)
        metadata = (("application", app), ("session_id", session))
        answer = stub.Method1(serve_pb2.UserDefinedMessage(), metadata=metadata, timeout=30)
    return 200, json.loads(answer.greeting)


def asked(ask: Ask) -> dict[str, Any]:
    """Ask for every session some times, and say where each was."""
    seen: dict[str, set[str]] = {}
    counted: Counter[Any] = Counter()
    names = [f"s{number}" for number in range(SESSIONS)] * ROUNDS
    with ThreadPoolExecutor(4) as pool:
        for name, (status, said) in zip(names, pool.map(ask, names), strict=True):
            counted[status] += 1
            if status == 200:
                seen.setdefault(name, set()).add(said["replica"])
                counted[f"is_home {said['is_home']}"] += 1
    split = sum(len(replicas) > 1 for replicas in seen.values())
    return {"split": split, "seen": len(seen), **{str(key): n for key, n in counted.items()}}


def strays(name: str) -> dict[str, int]:
    """Return what all replicas have counted."""
    import ray  # noqa: PLC0415 - it reads the environment
    from served import strays_here  # noqa: PLC0415

    counted: Counter[str] = Counter()
    for row in ray.util.list_named_actors(all_namespaces=True):
        if row["name"].startswith(f"SERVE_REPLICA::{name}#Chat#"):
            actor = ray.get_actor(row["name"], namespace=row["namespace"])
            for labels, n in ray.get(actor.__ray_call__.remote(strays_here, "serve")).items():
                counted[" ".join(labels)] += n
    return dict(counted)


def asking(port: int, grpc: int, name: str) -> Ask:
    """Return how one session's request is sent to an application."""
    if name == "grpc":
        return partial(by_grpc, grpc, name)
    # HAProxy asks an ingress request router for requests of that kind alone.
    return partial(get, port, f"/{name}", "POST" if name == "picked" else "GET")


def answering(ask: Ask) -> None:
    """Wait until the way in knows of an application."""
    deadline = time.monotonic() + 60
    while (answer := ask("warm"))[0] not in (200, 409):
        assert time.monotonic() < deadline, answer
        time.sleep(0.2)


def noticed(name: str) -> None:
    """Wait until strays are counted: replicas that serve them look their homes up meanwhile."""
    deadline = time.monotonic() + 60
    while not strays(name):
        assert time.monotonic() < deadline, f"{name} notices no stray"
        time.sleep(0.2)


def joined(client: Any, service: str) -> None:
    deadline = time.monotonic() + 60
    while sum(pod.life.value == "alive" for pod in client.pods(service).values()) < 3:
        assert time.monotonic() < deadline, f"the replicas of {service} do not join"
        time.sleep(0.1)


def known_to_haproxy(ask: Ask) -> None:
    """Wait until HAProxy asks the ingress request router: its configuration comes later."""
    deadline = time.monotonic() + 60
    while len({ask("warm")[1]["replica"] for _ in range(8)}) > 1:
        assert time.monotonic() < deadline, "HAProxy does not ask the ingress request router"
        time.sleep(0.2)


def main() -> None:
    begin()
    from ray import serve  # noqa: PLC0415 - it reads the environment

    import ray_route  # noqa: PLC0415

    outcomes: dict[str, Any] = {}
    with running() as (port, grpc), ray_route.connect("serve") as client:
        known = apps()
        for name in sys.argv[2:] or known:
            serve.run(known[name], name=name, route_prefix=f"/{name}")
            ask = asking(port, grpc, name)
            answering(ask)
            joined(client, f"{name}.Chat")
            if name == "picked":
                known_to_haproxy(ask)
            outcomes[name] = asked(ask)
            direct = direct_port(name) if KIND in ("direct", "fast") and name != "inner" else None
            if direct is not None:
                outcomes[f"{name} past the proxy"] = asked(partial(get, direct, f"/{name}", "GET"))
            if name == "serve" and KIND != "proxy":
                noticed(name)
            outcomes[f"{name} strays"] = strays(name)
    print(json.dumps(outcomes))


def direct_port(name: str) -> int | None:
    """Return a port on which one replica listens by itself."""
    first = int(os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"])
    for candidate in range(first, first + 20):
        try:
            if get(candidate, f"/{name}", "GET", "warm")[0] in (200, 409):
                return candidate
        except OSError:
            continue
    return None


if __name__ == "__main__":
    main()
