"""Hosts of their own on one machine: network namespaces on a bridge, whose cables can be cut.

Four hosts: the store, Ray's head with the router, one with pods, one with pods and the client. All
in namespaces of the lab's own, so that nothing else on the machine can be met. Needs root.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, permutations
from pathlib import Path

import pytest
from helpers import eventually

from ray_route.store.embedded import server_binary

STORE, HEAD, PODS, CLIENT = "store", "head", "pods", "client"
HOSTS = (STORE, HEAD, PODS, CLIENT)
_RAY_PORT, _STORE_PORT = 6391, 6400
_NOBODY = "02:00:00:00:00:01"
_START_S = 240.0
# Each node starts as few processes as it can, and none for others to see.
_HAS = {HEAD: {"head": 1}, PODS: {"pod": 2}, CLIENT: {"pod": 2}}
_FRUGAL = ("--num-cpus=1", "--disable-usage-stats", "--object-store-memory=100000000", "--block")


def problem() -> str:
    """Say why there can be no lab here; nothing if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "there is no `ip`"
    name = f"rr{secrets.token_hex(3)}"
    tried = subprocess.run(
        ["ip", "netns", "add", name], check=False, capture_output=True, text=True
    )
    if tried.returncode:
        return f"no network namespace can be made: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


@dataclass
class Lab:
    """Four hosts, wired."""

    mark: str = field(default_factory=lambda: f"rr{secrets.token_hex(2)}")
    _stack: ExitStack = field(default_factory=ExitStack)
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"redis://{self.address(STORE)}:{_STORE_PORT}"

    @property
    def ray_address(self) -> str:
        return f"{self.address(HEAD)}:{_RAY_PORT}"

    @staticmethod
    def address(host: str) -> str:
        return f"10.77.0.{HOSTS.index(host) + 1}"

    def space(self, host: str) -> str:
        return f"{self.mark}{host[0]}"

    def __enter__(self) -> Lab:
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="rr")))
        try:
            self._wire()
            self._start_store()
            self._start_ray()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end_processes()
        for process in self._started:
            process.wait(10)
        self._stack.close()

    # Cables.

    def _wire(self) -> None:
        bridge = f"{self.mark}x"
        self._space(bridge)
        _ip(bridge, "link add name br0 type bridge")
        _ip(bridge, "link set br0 up")
        for host in HOSTS:
            space, end = self.space(host), f"e{host[0]}"
            self._space(space)
            _ip(space, f"link add name v type veth peer name {end} netns {bridge}")
            _ip(space, f"addr add {self.address(host)}/24 dev v")
            _ip(space, "link set v up")
            _ip(bridge, f"link set {end} master br0 up")

    def _space(self, name: str) -> None:
        subprocess.run(["ip", "netns", "add", name], check=True)
        self._stack.callback(subprocess.run, ["ip", "netns", "del", name], check=False)
        _ip(name, "link set lo up")

    @contextmanager
    def cut(self, ways: list[tuple[str, str]], kind: str) -> Iterator[None]:
        """Let nothing through from one host to another, for each of some ways.

        "lost": it vanishes on the cable, and nobody is told. "refused": the sender is told at once.
        """
        try:
            for one, other in ways:
                _ip(self.space(one), _CUT[kind].format(self.address(other), _NOBODY))
            yield
        finally:
            for one, other in ways:
                _ip(self.space(one), _HEAL[kind].format(self.address(other)))

    # Processes.

    def start(self, host: str, *words: str, log: str) -> subprocess.Popen[bytes]:
        """Start a program on a host."""
        with (self.folder / log).open("wb") as out:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.space(host), *words],
                env=self.environment(),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def environment(self) -> dict[str, str]:
        here = Path(__file__).parent
        unset = ("RAY_ADDRESS", "RAY_ROUTE_REDIS_URL")
        kept = {name: value for name, value in os.environ.items() if name not in unset}
        return {
            **kept,
            "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
            "RAY_AUTH_MODE": "disabled",  # nobody else is on this network
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }

    def _start_store(self) -> None:
        server = str(server_binary("valkey"))
        options = ("--bind", self.address(STORE), "--port", str(_STORE_PORT), "--save", "")
        self.start(STORE, server, *options, "--protected-mode", "no", log="store.log")

    def _start_ray(self) -> None:
        """Start the head, and then the other nodes at once."""
        self._start_node(HEAD)
        self._await_node(HEAD)
        for host in (PODS, CLIENT):
            self._start_node(host)
        for host in (PODS, CLIENT):
            self._await_node(host)

    def _start_node(self, host: str) -> None:
        ray = str(Path(sys.executable).with_name("ray"))
        at = f"--node-ip-address={self.address(host)}"
        has = f"--resources={json.dumps(_HAS[host])}"
        joins = (f"--address={self.ray_address}",)
        begins = (f"--port={_RAY_PORT}", "--head", "--include-dashboard=false")
        how = begins if host == HEAD else joins
        # Nodes that start at once in one folder race for the names of their sockets.
        folder = f"--temp-dir={self.folder / host}"
        words = (ray, "start", at, *how, folder, has, *_FRUGAL)
        self._nodes[host] = self.start(host, *words, log=f"{host}.log")

    def _await_node(self, host: str) -> None:
        said = self.folder / f"{host}.log"

        def runs() -> bool:
            """Ray itself gives a node up that has not begun within half a minute."""
            if "Ray runtime started" in said.read_text(errors="replace"):
                return True
            if self._nodes[host].poll() is not None:
                self._end_processes([host])
                self._start_node(host)
            return False

        try:
            eventually(runs, host, _START_S)
        except pytest.fail.Exception:
            tail = said.read_text(errors="replace")[-2000:]
            pytest.fail(f"Ray does not run on the host {host}: {tail}")

    def _end_processes(self, hosts: Sequence[str] = HOSTS) -> None:
        """End all that runs on hosts of the lab, and nothing else; in order it takes 10 s."""
        end = time.monotonic() + 10
        while (pids := list(chain(*map(self._pids, hosts)))) and time.monotonic() < end:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def _pids(self, host: str) -> list[int]:
        named = ["ip", "netns", "pids", self.space(host)]
        listed = subprocess.run(named, capture_output=True, text=True, check=False)
        return [int(pid) for pid in listed.stdout.split()]


# A neighbour that is nobody's: what is sent to it is lost on the cable.
_CUT = {
    "lost": "neigh replace {} lladdr {} dev v nud permanent",
    "refused": "route add unreachable {}/32",
}
_HEAL = {"lost": "neigh del {} dev v", "refused": "route del unreachable {}/32"}


def _ip(space: str, words: str) -> None:
    subprocess.run(["ip", "-n", space, *words.split()], check=True, capture_output=True)


def ways() -> list[list[tuple[str, str]]]:
    """Return every cut there is: of each pair of hosts, one way, the other, and both."""
    single = [[way] for way in permutations(HOSTS, 2)]
    return single + [[way, way[::-1]] for [way] in single if way[0] < way[1]]
