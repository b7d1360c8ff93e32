"""What is said to a server, and what its replies mean, by blocking and asyncio connections alike.

A conversation yields what to send, and is sent the replies; who sends it is `connect`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any

from redis.exceptions import AskError, ClusterError, NoScriptError, TryAgainError

from ray_route.clock import Deadline
from ray_route.errors import RouteError, StoreUnavailableError
from ray_route.store.clients import translated
from ray_route.store.exchange import Message, UnansweredError, may_have_run
from ray_route.store.scripts import Call
from ray_route.store.url import StoreUrl

# How long a call waits for a slot on its way to another master, or for a replica's promotion.
MOVING_S = 5.0
_MOVING_POLL_S = 0.02
# Said of a slot in motion (TRYAGAIN, ASK, MOVED) or without a master: the call has not run.
_MOVING = (TryAgainError, AskError, ClusterError)


def conversation(
    calls: Sequence[Call],
) -> Generator[list[Message] | float, list[Any], list[Any]]:
    """Yield what to send, or how many seconds to wait; return each call's reply.

    Is sent the replies. Sends again what a server did not run: scripts that it has forgotten,
    with their source, and calls to a slot in motion, until `MOVING_S` have passed.
    """
    replies = yield [(call.key, call.words) for call in calls]
    deadline = Deadline.after(MOVING_S)
    while True:
        again = {
            index: (calls[index].key, calls[index].with_source())
            for index, reply in enumerate(replies)
            if isinstance(reply, NoScriptError) and calls[index].script is not None
        }
        moving = [index for index, reply in enumerate(replies) if isinstance(reply, _MOVING)]
        if moving and deadline.remaining() > 0:
            yield _MOVING_POLL_S
            again.update((index, (calls[index].key, calls[index].words)) for index in moving)
        if not again:
            return replies
        resent = yield list(again.values())
        for index, reply in zip(again, resent, strict=True):
            replies[index] = reply


def answers(
    url: StoreUrl, calls: Sequence[Call], replies: Sequence[Any], *, once: bool = False
) -> list[Any]:
    """Return each reply, or what its error means."""
    return [
        _meant(url, reply, call.key, once=once) if _is_drivers(reply) else reply
        for call, reply in zip(calls, replies, strict=True)
    ]


def _meant(url: StoreUrl, error: BaseException, key: str, *, once: bool) -> RouteError:
    meaning = translated(url, error, key)
    return meaning.told_as(UnansweredError) if once and may_have_run(error) else meaning


def _is_drivers(reply: Any) -> bool:
    return isinstance(reply, Exception) and not isinstance(reply, RouteError)


def joined(replies: Sequence[Any]) -> Any:
    """Make one reply of what all masters said to a command without a key."""
    for reply in replies:
        if isinstance(reply, Exception):
            return reply
    if all(isinstance(reply, list) for reply in replies):
        return [item for reply in replies for item in reply]
    return replies[0]


def scattered(
    messages: Sequence[Message], keyed: Iterable[Any], keyless: Iterable[Any]
) -> list[Any]:
    """Put the replies to messages with and without a key into the order of the messages."""
    with_key, without = iter(keyed), iter(keyless)
    return [next(with_key) if key else next(without) for key, _ in messages]


def some_answer(replies: list[Any]) -> list[Any]:
    """Return replies; raise what a master says that is away, if all are."""
    if replies and all(isinstance(reply, StoreUnavailableError) for reply in replies):
        raise replies[0]
    return replies
