"""Stores with a replica that lags when it takes over: one server, a Sentinel, and a Cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from proxy import TcpProxy
from servers import ClusterServers, SentinelServers, admin

from ray_route.store.embedded import EmbeddedServer
from ray_route.store.keys import Keys


@dataclass
class Replicated:
    """A store with a replica that is cut off from its primary, and takes over when that ends."""

    url: str
    holds: Callable[[str], bool]
    """Whether a key is on the primary that is lost."""
    fits: Callable[[str], bool]
    """Whether a namespace of this name is of use here."""
    replica: EmbeddedServer
    take_over: Callable[[], None]

    def cut_off(self) -> None:
        """Have the replica hear nothing any more of what its primary writes."""
        with closing(admin(self.replica)) as client:
            client.config_set("masterauth", "another")
            client.client_kill_filter(_type="master")


@contextmanager
def one_server() -> Iterator[Replicated]:
    """The replica takes over where whoever connects comes to."""
    settings = ("repl-diskless-sync-delay 0",)
    with EmbeddedServer(settings=settings) as primary, TcpProxy(primary.port) as proxy:
        follows = (f"masterauth {primary.password}", f"replicaof 127.0.0.1 {primary.port}")
        with EmbeddedServer(password=primary.password, settings=follows) as replica:

            def take_over() -> None:
                with closing(admin(replica)) as client:
                    client.execute_command("REPLICAOF", "NO", "ONE")
                proxy.retarget(replica.port)

            url = primary.url.replace(str(primary.port), str(proxy.port))
            yield Replicated(url, _always, _always, replica, take_over)


@contextmanager
def sentinel() -> Iterator[Replicated]:
    """The Sentinel promotes it."""
    with SentinelServers("valkey") as servers:
        primary, replica = servers.servers
        yield Replicated(servers.url, _always, _always, replica, primary.stop)


@contextmanager
def cluster() -> Iterator[Replicated]:
    """The other masters vote for it: of these one has the namespace's own keys, and its stream."""
    with ClusterServers("valkey", replicas=1, in_part=True) as servers:
        primary, replica = servers.nodes[0], servers.nodes[-1]

        def holds(key: str) -> bool:
            return servers.owner(servers.slot(key)) is primary

        def fits(name: str) -> bool:
            return not holds(Keys(name, 1).meta)

        yield Replicated(servers.url, holds, fits, replica, primary.stop)


def _always(_: str) -> bool:
    return True
