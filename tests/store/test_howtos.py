"""The commands of the how-to pages, run as they are printed, on real servers."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from helpers import eventually, unique_name
from servers import admin, is_in_step

from ray_route.cli.cluster import Cluster
from ray_route.cli.doctor import OK, latency, permissions
from ray_route.clock import Deadline
from ray_route.errors import ConfigError
from ray_route.store.bulk import BulkReader
from ray_route.store.connect import Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls, Writer
from ray_route.store.namespaces import open_namespace
from ray_route.store.scripts import plain_call
from ray_route.store.url import parse_url

HOWTO = Path(__file__).parents[2] / "docs" / "howto"
PAGES = sorted(HOWTO.glob("*.md"))
PROGRAM = Path(sysconfig.get_path("scripts")) / "redis-cli"
PASSWORD = "no-secret"
# Lines of these are tested elsewhere, or need machines that are not here.
ELSEWHERE = {
    "ray-route": "tests/ray/test_docs.py",
    "ray": "tests/unit/test_cluster_yaml.py",
    "kubectl": "tests/unit/test_kuberay_manifests.py",
    "export": "tests/unit/test_store_urls.py",
    "ssh": "tests/unit/test_page_server.py",
}
HERE = {"redis-cli", "ACL"}


def lines(page: Path) -> Iterator[str]:
    """Yield the command lines of a page."""
    blocks = re.findall(r"(?ms)^```(?:bash|sh|text)\n(.*?)^```", page.read_text())
    for line in "".join(blocks).splitlines():
        if re.match(r"(ACL|[a-z-]+) ", line) and "per second =" not in line:
            yield line


def acls() -> list[tuple[str, str]]:
    return [(page.name, line) for page in PAGES for line in lines(page) if line.startswith("ACL")]


def shell(server: EmbeddedServer, command: str) -> str:
    """Run a line by a shell, where `redis-cli` goes to a server of the test."""
    known = f'redis-cli() {{ {PROGRAM} -h 127.0.0.1 -p {server.port} "$@"; }}; '
    done = subprocess.run(
        ["/bin/bash", "-c", known + command],
        env={**os.environ, "REDISCLI_AUTH": server.password},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert "ERR" not in done.stdout, done.stdout
    return done.stdout


def test_every_command_line_of_a_howto_is_run_somewhere():
    first = {line.split()[0] for page in PAGES for line in lines(page)}
    assert first >= {"ACL", "redis-cli", "ray-route"}
    assert first <= HERE | ELSEWHERE.keys()


@pytest.mark.parametrize(("page", "line"), acls(), ids=lambda value: value.split()[0])
def test_a_user_made_as_printed_may_do_all_that_is_needed_and_no_more(
    server: EmbeddedServer, page: str, line: str
):
    if server.flavor == "redis":  # as the page says, of the old server
        line = line.replace("+client|setinfo +client|setname", "+client")
    words = shlex.split(line.replace("PASSWORD", PASSWORD))
    user, pattern = words[2], next(word for word in words if word.startswith("~"))
    assert shell(server, f"redis-cli {shlex.join(words)}").strip() == "OK"
    prefix = pattern.removeprefix("~rr:").rstrip("*").lstrip("{")
    namespace = f"{prefix}{unique_name()}"
    url = f"redis://{user}:{PASSWORD}@127.0.0.1:{server.port}/0"
    with closing(Store(parse_url(url))) as store:
        assert [found.level for found in permissions(store, Keys(namespace, 1))] == [OK]
        assert latency(store, Keys(namespace, 1)).found.startswith("a script takes")
        assert Cluster(store).damages(namespace) == []
        works(store, namespace)
        with pytest.raises(ConfigError, match=r"(?i)permission|NOPERM"):
            store.one(plain_call("GET", "another program's"))
        if prefix:
            with pytest.raises(ConfigError, match=r"(?i)permission|NOPERM"):
                open_namespace(store, f"not-{prefix}", {})
        with pytest.raises(ConfigError, match=r"(?i)permission|NOPERM"):
            store.one(plain_call("FLUSHALL", "ASYNC"))
    with closing(admin(server)) as client:
        client.execute_command("ACL", "DELUSER", user)


def works(store: Store, namespace: str) -> None:
    config = open_namespace(store, namespace, {"shards": 1})
    keys = Keys(namespace, 1)
    calls = LinkCalls(keys, config)
    reply = store.one(calls.set_if_absent(Writer(1), 0, "chat", ["u"], ["0:7"]))
    assert calls.parse(reply).written == [True]
    read = BulkReader(store, keys, "chat", [0]).read([b"u", b"missing"], Deadline.after(10))
    assert (read.owners[read.codes[0]], read.codes[1], read.failed) == ((0, 7), 0, {})


@pytest.mark.slow
def test_links_go_along_to_another_redis(server: EmbeddedServer):
    """`another_redis.md`, with its names of hosts in place."""
    namespace = unique_name()
    with (
        closing(Store(parse_url(server.url))) as before,
        EmbeddedServer(server.flavor, settings=(f"masterauth {server.password}",)) as new,
    ):
        works(before, namespace)
        stored = "GET", Keys(namespace, 1).link(0, "chat", "u")
        run = [line for line in lines(HOWTO / "another_redis.md") if line.startswith("redis-cli")]
        assert [line.split()[3] for line in run] == ["REPLICAOF", "INFO", "REPLICAOF"]
        begin, look, end = (line.replace("-h new", "") for line in run)
        shell(new, begin.replace("old 6379", f"127.0.0.1 {server.port}"))
        eventually(lambda: "master_link_status:up" in shell(new, look), "it has caught up")
        eventually(lambda: is_in_step(new), "it is in step")
        shell(new, end)
        with closing(Store(parse_url(new.url))) as after:
            assert after.one(plain_call(*stored)) == before.one(plain_call(*stored)) is not None
            assert open_namespace(after, namespace, {"shards": 1}).shards == 1
