"""The masters of a Redis Cluster, each by itself: one that is away keeps nobody else's calls.

redis-py's own pipeline sends to all nodes at once, fails as a whole, and closes the connections to
all when one has failed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from redis.asyncio.cluster import PipelineCommand
from redis.exceptions import (
    AskError,
    MovedError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as NoConnectionError
from redis.exceptions import TimeoutError as NoReplyError

from ray_route.errors import StoreUnavailableError
from ray_route.store.circuit import Circuit
from ray_route.store.clients import DRIVER_ERRORS, RETRIES, SOCKET_TIMEOUT_S, translated
from ray_route.store.exchange import (
    AWAY,
    LostAnswerError,
    Message,
    NoMasterError,
    UnansweredError,
    has_ended,
    may_have_run,
)
from ray_route.store.url import StoreUrl

_PAUSE_S = 0.1
WITHIN_S = SOCKET_TIMEOUT_S
"""How long others are kept waiting by a master that may be away, at each step of a look at all."""
_ELSEWHERE = (TryAgainError, AskError, MovedError)

Words = tuple[Any, ...]


class Masters:
    """Sends to the master that holds a key. Belongs to one event loop.

    Each has a circuit of its own. Errors stand in place of replies: redis-py's, and ours for a
    master that is away.
    """

    def __init__(self, url: StoreUrl, client: Any) -> None:
        self._url = url
        self._client = client
        self._circuits: defaultdict[str | None, Circuit] = defaultdict(Circuit)
        self._refreshing: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Find out who there are, if that is not known yet; raise what redis-py does."""
        # Not the client's own `initialize`: that asks one of them more, and fails if it is away.
        if not self._client.nodes_manager.slots_cache:
            await self._client.nodes_manager.initialize()

    def of(self, key: str) -> str | None:
        """Name the master that holds a key; None if none does, as far as is known."""
        try:
            return str(self._client.get_node_from_key(key).name)
        except DRIVER_ERRORS:
            return None

    async def send(self, messages: Sequence[Message], *, once: bool = False) -> list[Any]:
        """Send messages, each to the master of its key; return each one's reply or error.

        With `once` none is sent again that may have been carried out.
        """
        replies: list[Any] = [None] * len(messages)
        groups = self._by_master(messages)
        sent = (
            self._send_to(name, [messages[i] for i in some], once=once)
            for name, some in groups.items()
        )
        for some, received in zip(groups.values(), await asyncio.gather(*sent), strict=True):
            for index, reply in zip(some, received, strict=True):
                replies[index] = reply
        return replies

    def _by_master(self, messages: Sequence[Message]) -> dict[str | None, list[int]]:
        groups: dict[str | None, list[int]] = {}
        for index, (key, _) in enumerate(messages):
            groups.setdefault(self.of(key), []).append(index)
        return groups

    async def _send_to(
        self, name: str | None, messages: Sequence[Message], *, once: bool
    ) -> list[Any]:
        try:
            with self._circuits[name].attempt():
                replies = await self._asked(name, [words for _, words in messages], once=once)
        except LostAnswerError as lost:
            unanswered = translated(self._url, lost.error).told_as(UnansweredError)
            return [unanswered] * len(messages)
        except (StoreUnavailableError, *DRIVER_ERRORS) as error:
            return [error] * len(messages)
        return replies

    async def _asked(self, name: str | None, messages: Sequence[Words], *, once: bool) -> list[Any]:
        try:
            return await self.ask(name, messages, once=once)
        except AWAY as error:
            raise translated(self._url, error) from error

    async def ask(
        self, name: str | None, messages: Sequence[Words], *, once: bool = False
    ) -> list[Any]:
        """Send commands to one master, and elsewhere only what it says is there.

        Raises what keeps it from answering, whatever its circuit.
        """
        replies = await self.talk(name, messages, once=once)
        return [
            await self._followed(name, words, reply, once=once)
            if isinstance(reply, _ELSEWHERE)
            else reply
            for words, reply in zip(messages, replies, strict=True)
        ]

    async def talk(
        self, name: str | None, messages: Sequence[Words], *, once: bool = False
    ) -> list[Any]:
        """Send commands to one master alone; return its replies, "elsewhere" among them.

        Raises what keeps it from answering.
        """
        commands = [PipelineCommand(index, *words) for index, words in enumerate(messages)]
        for attempt in range(RETRIES + 1):
            try:
                node = self._node(name)
                for connection in filter(has_ended, node._free):  # noqa: SLF001 - no other way
                    await connection.disconnect()
                await _run(node, commands)
                break
            except AWAY as error:
                self.refresh_soon()
                if once and may_have_run(error):
                    raise LostAnswerError(error) from error
                if attempt == RETRIES or isinstance(error, NoReplyError):  # it is slow enough
                    raise
                await asyncio.sleep(_PAUSE_S)
        replies = [command.result for command in commands]
        if any(isinstance(reply, (*AWAY, MovedError)) for reply in replies):
            self.refresh_soon()
        if replies and isinstance(replies[0], AWAY):  # it has answered nothing
            if once and may_have_run(replies[0]):
                raise LostAnswerError(replies[0])
            raise replies[0]
        return replies

    def _node(self, name: str | None) -> Any:
        node = self._client.get_node(node_name=name) if name else None
        if node is None:
            self.refresh_soon()
            raise NoMasterError("no master holds the slot now")
        return node

    async def _followed(
        self, name: str | None, words: Words, told: ResponseError, *, once: bool
    ) -> Any:
        """Do as a server says that is not the one to ask, or not yet."""
        if once:
            return await self._sent_on(words, told)
        parser = self._client.commands_parser
        try:
            if not parser.commands:  # redis-py 8 reads a command's keys before it asks for these
                await parser.initialize(self._node(name))
            return await self._client.execute_command(*words)
        except DRIVER_ERRORS as error:
            return error

    async def _sent_on(self, words: Words, told: ResponseError) -> Any:
        """Send to where a server says, once; redis-py's own way would try again and again."""
        if not isinstance(told, AskError):
            return told
        host, port = told.node_addr
        messages = [words] if isinstance(told, MovedError) else [("ASKING",), words]
        try:
            return (await self.talk(f"{host}:{port}", messages, once=True))[-1]
        except LostAnswerError as lost:
            return lost.error
        except AWAY:
            return told  # nothing was run: whoever asks tries again

    def refresh_soon(self) -> None:
        """Look which masters there are now, in the background."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh())

    async def _refresh(self) -> None:
        with contextlib.suppress(*DRIVER_ERRORS):
            await self._client.nodes_manager.initialize()

    async def answering(self, *messages: Words) -> dict[str, list[Any]]:
        """Ask every master the same; return the replies of those that answer in time."""
        await self.begin()
        names = [str(node.name) for node in self._client.get_primaries()]
        asked = (asyncio.wait_for(self.talk(name, messages), WITHIN_S) for name in names)
        replies = await asyncio.gather(*asked, return_exceptions=True)
        answered = {
            name: reply
            for name, reply in zip(names, replies, strict=True)
            if not isinstance(reply, BaseException)
        }
        if not answered:
            raise NoConnectionError(f"no master answers within {WITHIN_S:g} s: {replies[0]!r}")
        return answered

    async def close(self) -> None:
        """Look for no more, and close all connections."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        await self._client.aclose()
        for nodes in ("nodes_cache", "startup_nodes"):
            await self._client.nodes_manager.aclose(nodes)


async def _run(node: Any, commands: list[PipelineCommand]) -> None:
    try:
        await node.execute_pipeline(commands)
    except AttributeError as error:  # before redis-py 7 a new topology closes what is in use
        raise NoConnectionError("its connection was closed meanwhile") from error
