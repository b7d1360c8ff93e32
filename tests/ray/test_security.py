from __future__ import annotations

import contextlib
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import trustme
from helpers import end_router, eventually, unique_name
from proxy import TcpProxy
from services import Counter

import ray_route
from ray_route.store.connect import Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.scripts import Call
from ray_route.store.url import parse_url

pytestmark = pytest.mark.slow

PASSWORD = "pw-that-must-stay-secret"


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(password=PASSWORD) as running:
        yield running


@pytest.fixture
def tls(server: EmbeddedServer, tmp_path: Path) -> Iterator[str]:
    """The URL of the server behind TLS, with a certificate of an authority of our own."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusted = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(trusted))
    with TcpProxy(server.port, tls=context) as proxy:
        yield f"rediss://:{PASSWORD}@127.0.0.1:{proxy.port}/0?ssl_ca_certs={trusted}"


def test_everything_works_over_tls(ray_session: None, tls: str) -> None:
    name = unique_name()
    with ray_route.connect(name, tls) as client:
        options = {"namespace": name, "service": "svc", "replicas": 2, "redis_url": tls}
        with ray_route.deploy(Counter, **options):
            assert client.call("u", "svc", "add", "u") == 1
            assert client.get_linked_pod_not_cache("u", "svc") is not None
    end_router(name)


def test_an_unknown_certificate_is_refused(ray_session: None, tls: str) -> None:
    with pytest.raises(ray_route.StoreUnavailableError, match="certificate verify failed"):
        ray_route.connect(unique_name(), tls.partition("?")[0])


def documented_acl() -> list[str]:
    page = Path(__file__).resolve().parents[2] / "docs" / "howto" / "redis.md"
    (line,) = [text for text in page.read_text().splitlines() if text.startswith("ACL SETUSER")]
    return line.replace("PASSWORD", PASSWORD).split()[2:]


def test_the_documented_acl_is_enough_and_a_command_less_is_not(
    ray_session: None, server: EmbeddedServer
) -> None:
    name, other, rules = unique_name(), unique_name(), documented_acl()
    admin = Store(parse_url(server.url))
    admin.one(Call("", ("ACL", "SETUSER", *rules)))
    url = server.url.replace("redis://:", f"redis://{rules[0]}:")
    with ray_route.connect(name, url) as client:
        options = {"namespace": name, "service": "svc", "replicas": 2, "redis_url": url}
        with ray_route.deploy(Counter, **options) as deployment:
            uids = [f"user-{number}" for number in range(50)]
            assert client.call_many([(u, (u,)) for u in uids], "svc", "add") == [1] * 50
            assert client.batch_get_linked_pod([*uids, "nobody"], "svc").missing == ["nobody"]
            where = client.compute_linked_pod("user-0", "svc").pod
            assert client.move("user-0", "svc", 1 - where).pod == 1 - where
            assert set(client.get_link_service("user-0")) == {"svc"}
            assert client.explain("user-0", "svc").link is not None
            assert client.sweep("svc") == 0
            assert [*deployment.drain(0)][-1].left == 0
            admin.one(Call("", ("FLUSHALL",)))
            assert client.call_many([(u, (u,)) for u in uids[1:]], "svc", "add", timeout=60)
            assert client.get_linked_pod_not_cache("user-0", "svc") is not None
    end_router(name)
    denied = admin.one(Call("", ("ACL", "LOG")))
    assert denied == []
    admin.one(Call("", ("ACL", "SETUSER", rules[0], "-evalsha")))
    with pytest.raises(ray_route.ConfigError, match="ACL"):
        ray_route.connect(other, url)
    admin.close()


def command_lines() -> str:
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            lines.append((process / "cmdline").read_bytes() + (process / "environ").read_bytes())
    return b"\n".join(lines).decode(errors="replace")


def test_the_password_is_in_no_process_list_log_repr_or_actor_name(
    ray_session: None, server: EmbeddedServer, caplog: Any
) -> None:
    name = unique_name()
    with ray_route.connect(name, server.url) as client:
        options = {"namespace": name, "service": "svc", "replicas": 1, "redis_url": server.url}
        with ray_route.deploy(Counter, **options) as deployment:
            client.compute_linked_pod("u", "svc")
            shown = [
                repr(client),
                repr(deployment),
                repr(server),
                repr(client._session.namespace.url),
            ]
            shown.append(repr(client._session.namespace.store))
            shown.append(str(ray.util.list_named_actors(all_namespaces=True)))
            shown.append(command_lines())
            server.stop()
            with pytest.raises(ray_route.StoreUnavailableError) as caught:
                client.get_linked_pod_not_cache("u", "svc")
            shown += [str(caught.value), repr(caught.value), str(caught.value.__cause__)]
            eventually(lambda: "can't be read" in caplog.text, "the reader says that it is cut")
            server.start()
    context = ray.get_runtime_context()
    logs = Path(context.get_temp_dir()) / context.get_session_name() / "logs"
    shown += [path.read_text(errors="replace") for path in logs.glob("*") if path.is_file()]
    assert PASSWORD not in "\n".join([*shown, caplog.text])
    end_router(name)


def test_the_embedded_server_listens_on_loopback_only(client: Any) -> None:
    store = client._session.namespace.store._client
    assert store.info("server")["tcp_port"] == client._session.namespace.url.nodes[0][1]
    assert store.config_get("bind")["bind"] == "127.0.0.1"
    assert client._session.namespace.url.password


def test_the_embedded_server_is_refused_where_others_could_not_reach_it(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes of a test's cluster are all at one address, so what Ray says of them is made up."""
    nodes = [{"NodeManagerAddress": f"10.0.0.{n}", "Alive": n != 3} for n in (1, 2, 3)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    with pytest.raises(ray_route.ConfigError, match=r"cluster has 2.*RAY_ROUTE_REDIS_URL"):
        ray_route.connect(unique_name())


def test_the_embedded_server_ends_with_its_parent(tmp_path: Path) -> None:
    code = (
        "from ray_route.store.embedded import EmbeddedServer; import sys;"
        "s = EmbeddedServer().start(); print(s.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    os.kill(pid, 0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for pipe in (parent.stdout, parent.stdin):
        assert pipe is not None
        pipe.close()
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the server ends too")
