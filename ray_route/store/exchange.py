"""One exchange with a server: messages sent at once, answers read in order, and if those are lost.

A message whose answer is lost may have been carried out, by a server that may be another's replica
by now. Whoever must not have it carried out by two sends it `once`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hiredis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    MaxConnectionsError,
    ResponseError,
)
from redis.exceptions import ConnectionError as NoConnectionError
from redis.exceptions import TimeoutError as NoReplyError

from ray_route.errors import StoreUnavailableError

AWAY = (NoConnectionError, NoReplyError, OSError)
"""What redis-py raises where a server does not answer."""

Message = tuple[str, tuple[Any, ...]]
"""A key, which decides the node in a Cluster, and the words of a command."""


class UnansweredError(StoreUnavailableError):
    """The answer of a server was lost: what it was sent may have been carried out."""


class UnlookedError(StoreUnavailableError):
    """Nothing was sent: the server is another than was last looked at."""


class LostAnswerError(Exception):
    """What redis-py said after something was sent: it is not sent again."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class ElsewhereError(Exception):
    """A connection leads to another server than was last looked at: nothing was sent."""


class NoMasterError(NoConnectionError):
    """No master of a Cluster holds a slot, as far as is known."""


# Of these nothing was run: redis-py calls so, too, what a server says that is there. And what it
# says of a connection that was not made, or leads to a primary that is a replica now.
_NOT_RUN = (AuthenticationError, BusyLoadingError, MaxConnectionsError, NoMasterError)
_NOT_RUN_TEXTS = ("connecting to", "is now a slave")


def may_have_run(error: BaseException) -> bool:
    """Say whether what was sent may have been carried out where redis-py raises this."""
    is_refused = isinstance(error, _NOT_RUN) or any(text in str(error) for text in _NOT_RUN_TEXTS)
    return isinstance(error, AWAY) and not is_refused


def has_ended(connection: Any) -> bool:
    """True if a server has closed a connection, which redis-py finds out when it reads next."""
    reader, writer = connection._reader, connection._writer  # noqa: SLF001 - no other way
    return bool(reader and (reader.at_eof() or writer.transport.is_closing()))


async def connected(connection: Any) -> None:
    """Connect what is not connected, or not any more: else what is sent may count as lost."""
    if has_ended(connection):
        await connection.disconnect()
    if not connection.is_connected:
        await connection.connect()


async def exchange(connection: Any, messages: Sequence[Message], *, once: bool) -> list[Any]:
    """Send all messages; return each one's reply or the server's refusal.

    Raises what redis-py does; with `once` `LostAnswerError`, if they may have been carried out.
    """
    await connected(connection)
    replies: list[Any] = []
    try:
        await connection.send_packed_command(
            b"".join([hiredis.pack_command(words) for _, words in messages])
        )
        for _ in messages:
            replies.append(await _reply(connection))  # noqa: PERF401 - counts those that came
    except AWAY as error:
        if once and (replies or may_have_run(error)):
            raise LostAnswerError(error) from error
        raise
    return replies


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as refusal:
        return refusal
