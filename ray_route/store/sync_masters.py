"""The masters of a Redis Cluster for those who block; see `masters`, which awaits.

Each has a circuit of its own: one that is away fails its own calls at once, and nobody else's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from redis.crc import key_slot
from redis.exceptions import RedisError

from ray_route.errors import StoreUnavailableError
from ray_route.store.circuit import Circuit
from ray_route.store.clients import DRIVER_ERRORS, translated
from ray_route.store.url import StoreUrl

Words = tuple[Any, ...]


class Homes(NamedTuple):
    """Which server, by name, holds each slot of a Cluster at one moment; None: there is but one."""

    by_slot: Mapping[int, str] | None = None

    def of(self, key: str) -> str | None:
        """Name the server that holds a key; None if none does."""
        return "" if self.by_slot is None else self.by_slot.get(key_slot(key.encode()))


class SyncMasters:
    """Sends to the master that holds a key. Thread-safe.

    Errors stand in place of replies: redis-py's, and ours for a master that is away.
    """

    def __init__(self, url: StoreUrl, client: Any) -> None:
        self._url = url
        self._client = client
        self._circuits: defaultdict[str | None, Circuit] = defaultdict(Circuit)

    def send(self, messages: Sequence[tuple[str, Words]]) -> list[Any]:
        """Send messages, each to the master of its key; return each one's reply or error."""
        groups: dict[str | None, list[int]] = {}
        for index, (key, _) in enumerate(messages):
            groups.setdefault(self.of(key), []).append(index)
        replies: list[Any] = [None] * len(messages)
        for name, some in groups.items():
            for index, reply in zip(some, self._send_to(name, messages, some), strict=True):
                replies[index] = reply
        return replies

    def _send_to(
        self, name: str | None, messages: Sequence[tuple[str, Words]], some: Sequence[int]
    ) -> Sequence[Any]:
        try:
            with self._circuits[name].attempt():
                return self._asked([messages[index] for index in some])
        except StoreUnavailableError as error:
            return [error] * len(some)

    def _asked(self, messages: Sequence[tuple[str, Words]]) -> list[Any]:
        # Named nodes spare redis-py the search for keys in the words: it asks the server where
        # they are in commands like XREAD.
        pipeline = self._client.pipeline(transaction=False)
        try:
            for key, words in messages:
                node = self._client.get_node_from_key(key)
                pipeline.execute_command(*words, target_nodes=node)
            replies: list[Any] = pipeline.execute(raise_on_error=False)
        except DRIVER_ERRORS as error:
            raise translated(self._url, error) from error
        return replies

    def everywhere(self, words: Words) -> list[Any]:
        """Send a command without a key to every master; return each one's reply or error."""
        replies = []
        for node in self._client.get_primaries():
            try:
                replies.append(node.redis_connection.execute_command(*words))
            except RedisError as error:
                replies.append(error)
        return replies

    def of(self, key: str) -> str | None:
        """Name the master that holds a key; None if none does, as far as is known."""
        try:
            return str(self._client.get_node_from_key(key).name)
        except DRIVER_ERRORS:
            return None

    def homes(self) -> Homes:
        """Return who holds what, as last heard."""
        held = dict(self._client.nodes_manager.slots_cache)
        return Homes({slot: str(nodes[0].name) for slot, nodes in held.items() if nodes})

    def pool(self, key: str) -> Any:
        """Return redis-py's pool of the master that holds a key; raise `RouteError` if it is away.

        Or was a moment ago, or if there is none.
        """
        self._circuits[self.of(key)].check()
        try:
            node = self._client.get_node_from_key(key)
        except DRIVER_ERRORS as error:
            raise translated(self._url, error) from error
        return self._client.get_redis_connection(node).connection_pool

    def pools(self) -> list[tuple[str, Any]]:
        """Look which masters there are; return each one's name and redis-py's pool of it."""
        try:
            self._client.nodes_manager.initialize()
            return [
                (str(node.name), self._client.get_redis_connection(node).connection_pool)
                for node in self._client.get_primaries()
            ]
        except DRIVER_ERRORS as error:
            raise translated(self._url, error) from error
