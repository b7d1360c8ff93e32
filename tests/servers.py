"""Set-ups of several real servers: a Redis Cluster, and a primary with replica under Sentinel."""

from __future__ import annotations

import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
from helpers import eventually

from ray_route.store.embedded import _WITH_PARENT, EmbeddedServer, free_port, server_binary
from ray_route.store.url import StoreUrl, parse_url

SLOTS = 16_384
SERVICE = "links"
_BUS = 10_000


def port_with_bus() -> int:
    """Return a free port whose cluster bus, 10,000 above, is free too."""
    # Both below the ports of outgoing connections, as with `free_port`.
    for port in random.sample(range(10_000, 20_000), 100):
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + _BUS))
            except OSError:
                continue
            return port
    raise RuntimeError("no port is free")


def admin(server: EmbeddedServer) -> redis.Redis:
    """Open a plain client of one server, for what no user of it may do."""
    return redis.Redis("127.0.0.1", server.port, password=server.password, socket_timeout=5)


def is_in_step(replica: EmbeddedServer) -> bool:
    """Return whether a replica has its primary's data and follows it."""
    with closing(admin(replica)) as client:
        return bool(client.info("replication").get("master_link_status") == "up")


@dataclass
class ClusterServers:
    """A Redis Cluster on loopback; the first `masters` nodes share the slots, the rest follow.

    With `in_part`, masters that are a majority go on when others are lost.
    """

    flavor: str
    masters: int = 3
    replicas: int = 0
    in_part: bool = False
    nodes: list[EmbeddedServer] = field(default_factory=list)
    password: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    _stack: ExitStack = field(default_factory=ExitStack, repr=False)

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"redis+cluster://:{quote(self.password, safe='')}@{hosts}"

    def store_url(self) -> StoreUrl:
        return parse_url(self.url)

    def __enter__(self) -> ClusterServers:
        settings = (
            "cluster-enabled yes",
            "cluster-node-timeout 1000",
            f"cluster-require-full-coverage {'no' if self.in_part else 'yes'}",
            "cluster-replica-validity-factor 0",
            "repl-ping-replica-period 1",
            "repl-diskless-sync-delay 0",
            f"masterauth {self.password}",
        )
        for _ in range(self.masters + self.replicas):
            node = EmbeddedServer(
                self.flavor, port=port_with_bus(), password=self.password, settings=settings
            )
            self.nodes.append(self._stack.enter_context(node))
        self._give_out_slots()
        self._meet()
        for number in range(self.replicas):
            self._follow(self.nodes[self.masters + number], self.nodes[number % self.masters])
        eventually(self._is_ready, "the cluster is up")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _give_out_slots(self) -> None:
        for rank, node in enumerate(self.nodes[: self.masters]):
            first, end = (SLOTS * place // self.masters for place in (rank, rank + 1))
            self.command(node, "CLUSTER", "SET-CONFIG-EPOCH", rank + 1)
            self.command(node, "CLUSTER", "ADDSLOTS", *range(first, end))

    def _meet(self) -> None:
        for node in self.nodes[1:]:
            self.command(self.nodes[0], "CLUSTER", "MEET", "127.0.0.1", node.port)
        count = str(len(self.nodes))
        for node in self.nodes:
            eventually(
                lambda node=node: self.info(node)["cluster_known_nodes"] == count,
                "all nodes know each other",
            )

    def _follow(self, replica: EmbeddedServer, master: EmbeddedServer) -> None:
        name = self.node_id(master)

        def knows() -> bool:
            try:
                self.command(replica, "CLUSTER", "REPLICATE", name)
            except redis.ResponseError:
                return False
            return True

        eventually(knows, "the replica knows its master")
        eventually(lambda: is_in_step(replica), "the replica is in step")

    def _is_ready(self) -> bool:
        return all(self.info(node)["cluster_state"] == "ok" for node in self.nodes)

    def info(self, node: EmbeddedServer) -> dict[str, str]:
        info: dict[str, str] = self.command(node, "CLUSTER INFO")
        return info

    def command(self, node: EmbeddedServer, *words: Any) -> Any:
        """Send a command to one node."""
        with closing(admin(node)) as client:
            return client.execute_command(*words)

    def node_id(self, node: EmbeddedServer) -> str:
        name = self.command(node, "CLUSTER", "MYID")
        return name.decode() if isinstance(name, bytes) else str(name)

    def freeze(self, node: EmbeddedServer) -> None:
        """Stop a node's process where it is; at the end it goes on, to be ended."""
        os.kill(node.pid, signal.SIGSTOP)
        self._stack.callback(self.thaw, node)

    def thaw(self, node: EmbeddedServer) -> None:
        """Let a frozen node go on."""
        os.kill(node.pid, signal.SIGCONT)

    def owner(self, slot: int) -> EmbeddedServer:
        """Return the master that holds a slot, as the first node sees it."""
        for first, last, port in self._slots():
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise RuntimeError(f"nobody holds slot {slot}")

    def _slots(self) -> list[tuple[int, int, int]]:
        with closing(admin(self.nodes[0])) as client:
            slots: Any = client.execute_command("CLUSTER", "SLOTS")
        return [(first, last, master[1]) for first, last, master, *_ in slots]

    def slot(self, key: str) -> int:
        return int(self.command(self.nodes[0], "CLUSTER", "KEYSLOT", key))

    def begin_move(self, slot: int, to: EmbeddedServer) -> EmbeddedServer:
        """Declare that a slot is on its way to another master; return its present one."""
        source = self.owner(slot)
        self.command(to, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.node_id(source))
        self.command(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.node_id(to))
        return source

    def move_keys(self, slot: int, source: EmbeddedServer, to: EmbeddedServer, count: int) -> int:
        """Move up to `count` keys of a slot on its way; return how many went."""
        keys = self.command(source, "CLUSTER", "GETKEYSINSLOT", slot, count)
        if keys:
            address = ("127.0.0.1", to.port, "", 0, 5000, "AUTH", self.password)
            self.command(source, "MIGRATE", *address, "KEYS", *keys)
        return len(keys)

    def end_move(self, slot: int, to: EmbeddedServer) -> None:
        """Declare that a slot has arrived."""
        name = self.node_id(to)
        for node in (to, *(node for node in self.nodes[: self.masters] if node is not to)):
            self.command(node, "CLUSTER", "SETSLOT", slot, "NODE", name)


@dataclass
class SentinelServers:
    """A primary, its replica, and one Sentinel with a password of its own that watches them."""

    flavor: str
    down_after_ms: int = 500
    port: int = field(default_factory=free_port)
    password: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    sentinel_password: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    servers: list[EmbeddedServer] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack, repr=False)

    @property
    def url(self) -> str:
        secret = quote(self.sentinel_password, safe="")
        return f"{self.url_without_sentinel_password}?sentinel_password={secret}"

    @property
    def url_without_sentinel_password(self) -> str:
        password = quote(self.password, safe="")
        return f"redis+sentinel://:{password}@127.0.0.1:{self.port}/{SERVICE}"

    def store_url(self) -> StoreUrl:
        return parse_url(self.url)

    def __enter__(self) -> SentinelServers:
        common = (
            f"masterauth {self.password}",
            "repl-ping-replica-period 1",
            "repl-diskless-sync-delay 0",
        )
        primary = EmbeddedServer(self.flavor, password=self.password, settings=common)
        self.servers.append(self._stack.enter_context(primary))
        follows = (*common, f"replicaof 127.0.0.1 {primary.port}")
        replica = EmbeddedServer(self.flavor, password=self.password, settings=follows)
        self.servers.append(self._stack.enter_context(replica))
        self._start_sentinel(primary)
        eventually(self._knows_the_replica, "the Sentinel knows the replica")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start_sentinel(self, primary: EmbeddedServer) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {folder}",
            f"logfile {folder / 'sentinel.log'}",
            f"requirepass {self.sentinel_password}",
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 1",
            f"sentinel auth-pass {SERVICE} {self.password}",
            f"sentinel down-after-milliseconds {SERVICE} {self.down_after_ms}",
            f"sentinel failover-timeout {SERVICE} 3000",
        ]
        settings = folder / "sentinel.conf"
        settings.write_text("\n".join(lines) + "\n")
        words = [str(server_binary(self.flavor)), str(settings), "--sentinel"]
        process = subprocess.Popen(
            [sys.executable, "-ISc", _WITH_PARENT, str(os.getpid()), *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)

    def _client(self) -> redis.Redis:
        return redis.Redis("127.0.0.1", self.port, password=self.sentinel_password)

    def ask(self, *words: Any) -> Any:
        """Ask the Sentinel."""
        with closing(self._client()) as client:
            return client.execute_command(*words)

    def _knows_the_replica(self) -> bool:
        try:
            reply = self.ask("SENTINEL MASTER", SERVICE)
        except redis.ConnectionError:
            return False
        return int(reply["num-slaves"]) > 0 and is_in_step(self.servers[1])

    def primary(self) -> EmbeddedServer:
        """Return the server that the Sentinel holds for the primary."""
        with closing(self._client()) as client:
            port = client.sentinel_get_master_addr_by_name(SERVICE)[1]
        return next(server for server in self.servers if server.port == port)
