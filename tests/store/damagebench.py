"""A namespace with a router, pods and users on a real server, to damage its keys one by one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sysconfig
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from ray_route.clock import Deadline
from ray_route.config import RouteConfig
from ray_route.errors import LostWritesError, RouteError
from ray_route.model import Link, RoutingState
from ray_route.protocol.commands import Memory, Recall
from ray_route.router.change_writer import ChangeWriter
from ray_route.router.directory import Directory
from ray_route.router.failure_detector import FailureDetector
from ray_route.router.link_table import LinkTable
from ray_route.router.mailbox import Mailboxes
from ray_route.router.membership import Membership
from ray_route.router.placing_gate import PlacingGate
from ray_route.router.recovery import Recovery
from ray_route.router.shards import Shards, SupersededError
from ray_route.store.bulk import BulkReader, Owned
from ray_route.store.connect import AsyncStore, Store
from ray_route.store.inspection import Damage, damages
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls
from ray_route.store.namespaces import open_namespace
from ray_route.store.pods import Identity, PodCalls
from ray_route.store.scripts import plain_call

# So slow that nothing happens here but what a test does.
OPTIONS = {"shards": 2, "heartbeat_s": 20.0, "pod_lease_s": 60.0, "staleness_s": 60.0}
CONFIG = RouteConfig.of(OPTIONS)
SERVICE, OTHER = "chat", "games"
USERS = [f"u{number}" for number in range(12)]
_SCRIPTS = sysconfig.get_path("scripts")


@dataclass
class Pod:
    """A pod that lives: it renews, and remembers what it holds."""

    who: Identity
    calls: PodCalls
    incarnation: int = 0
    seq: int = 0
    held: dict[str, tuple[int, bool]] = field(default_factory=dict)

    def claim(self, store: Store) -> None:
        status, *told = store.one(self.calls.claim(self.who, RoutingState.READY))
        assert status == b"ok", status
        self.incarnation, self.seq = int(told[0]), int(told[1])

    def renew(self, store: Store) -> bool:
        """Renew; say whether Redis took it."""
        call = self.calls.renew(
            self.who, self.incarnation, 1.0, RoutingState.READY, self.seq, lapsed=False
        )
        try:
            status, *told = store.one(call)
        except RouteError:
            return False
        assert status == b"ok", status
        self.seq = int(told[0])
        return True


class Bench:
    """One router of the namespace, its three pods, and their users."""

    def __init__(self, store: Store, namespace: str) -> None:
        self.store = store
        self.keys = Keys(namespace, CONFIG.shards)
        calls = PodCalls(self.keys)
        places = [(SERVICE, 0), (SERVICE, 1), (OTHER, 0)]
        self.pods = [
            Pod(Identity(service, pod, f"{pod}-{service}-process", "node", "actor"), calls)
            for service, pod in places
        ]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Bench]:
        """Open the namespace, begin a router, and place the users."""
        open_namespace(self.store, self.keys.namespace, OPTIONS)
        await self.new_router()
        for pod in self.pods:
            pod.claim(self.store)
        await self.membership.refresh_all()
        answering = asyncio.create_task(self._answer_recalls())
        try:
            self.placed = {name: await self.look_up(name) for name in (SERVICE, OTHER)}
            self._acquire()
            yield self
        finally:
            answering.cancel()
            await self._async.close()

    async def new_router(self) -> None:
        """Begin a router that knows nothing yet, as after the end of the one before."""
        keys = self.keys
        self._async = AsyncStore(self.store.url)
        self.shards = Shards(self._async, keys, LinkCalls(keys, CONFIG))
        self.membership = Membership(self._async, keys, lambda *_: None, self.shards)
        self.links = LinkTable(CONFIG, keys, self.membership, self.shards)
        self.directory = Directory(CONFIG, self.links, self._async, self.membership)
        self.mailboxes = Mailboxes()
        gate = PlacingGate(keys.namespace, CONFIG, self.membership)
        self.failures = FailureDetector(self.membership, gate, CONFIG, "node")
        self.recovery = Recovery(
            CONFIG,
            self._async,
            self.membership,
            self.shards,
            self.links,
            self.mailboxes,
            self.failures.begin_anew,
        )
        self.shards.recover, self.shards.look = self.recovery.recover, self.recovery.compared
        self.changes = ChangeWriter(self._async, keys)
        await self.recovery.look_for_proof()
        await self.shards.claim()
        await self.membership.refresh_all()
        await self.recovery.begin(pods_expected=False)

    async def restart_router(self) -> None:
        """As Ray does: again and again, until it serves."""
        for _ in range(3):
            await self._async.close()
            with contextlib.suppress(SupersededError):
                return await self.new_router()
        raise AssertionError("no router can start")

    async def _answer_recalls(self) -> None:
        while True:
            for address, box in list(self.mailboxes._boxes.items()):
                for number, command in list(box.commands.items()):
                    assert isinstance(command, Recall)
                    held = self._held(address[0], address[1], command.shards)
                    memory = Memory([0] * CONFIG.shards, held)
                    self.mailboxes.answer(address, number, memory)
            await asyncio.sleep(0.002)

    def _held(self, service: str, pod: int, shards: frozenset[int]) -> dict[str, tuple[int, bool]]:
        whose = ((pod.who.service, pod.who.pod) for pod in self.pods)
        held = dict(zip(whose, (pod.held for pod in self.pods), strict=True))[service, pod]
        return {uid: it for uid, it in held.items() if self.keys.shard(uid) in shards}

    def _acquire(self) -> None:
        for pod in self.pods:
            links = self.placed[pod.who.service]
            pod.held = {
                uid: (link.epoch, False)
                for uid, link in links.items()
                if isinstance(link, Link) and link.pod == pod.who.pod
            }

    # What happens by itself.

    async def beat(self) -> None:
        """Let a heartbeat pass: pods renew, the router looks at them and compares counters."""
        for pod in self.pods:
            pod.renew(self.store)
        with contextlib.suppress(RouteError):
            await self.failures._look()
        with contextlib.suppress(RouteError):
            await self.recovery.recover()

    # What users see.

    async def look_up(self, service: str) -> dict[str, Link | RouteError]:
        """Look every user up, as clients do, by a router that has nothing in its cache."""
        for uid in USERS:
            self.links.cache.drop(service, uid)
        answers = await self.directory.compute(service, dict.fromkeys(USERS, 0), None)
        if lost := {u: 0 for u, answer in answers.items() if isinstance(answer, LostWritesError)}:
            await self.recovery.recover(map(self.keys.shard, lost))
            answers.update(await self.directory.compute(service, lost, None))
        return answers

    def read_many(self, service: str) -> Owned:
        reader = BulkReader(self.store, self.keys, service, list(self.shards.counters.seen))
        return reader.read([uid.encode() for uid in USERS], Deadline.after(10.0))

    # What an operator does.

    async def examine(self) -> list[Damage]:
        return [damage async for damage in damages(self._async, self.keys.namespace)]

    def mend(self, damage: Damage) -> None:
        """Run the command as printed, with the real redis-cli, by a shell."""
        url = self.store.url
        host, port = url.nodes[0]
        program = Path(_SCRIPTS) / "redis-cli"
        known = f'redis-cli() {{ {program} -h {host} -p {port} "$@"; }}; '
        done = subprocess.run(
            ["/bin/bash", "-c", known + damage.mend],
            env={**os.environ, "REDISCLI_AUTH": url.password or ""},
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        assert "ERR" not in done.stdout + done.stderr, done

    def put(self, *words: object) -> None:
        """Run a plain command."""
        name, key, *rest = words
        self.store.one(plain_call(str(name), str(key), *rest))

    def swap(self, key: str, *words: object) -> None:
        """Put something of another type in a key's place."""
        self.put("DEL", key)
        self.put(words[0], key, *words[1:])
