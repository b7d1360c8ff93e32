"""`ResponseStream`: the items of a call whose method is a generator, one by one."""

from __future__ import annotations

from typing import Generic, TypeVar

from ray_route.client.streamed_call import END, StreamedCall
from ray_route.clock import Deadline
from ray_route.runtime.waiting import run, run_async

R = TypeVar("R")


class ResponseStream(Generic[R]):
    """The items of a call that has been sent: iterate over it, by `for` or `async for`.

    Each wait for an item is bounded by the call's `timeout_s`. The first item comes once the pod
    has admitted the call; a refusal is followed until then. Each item is fenced as a result is.
    A pod that dies, or loses the uid, in between is an error with `may_have_run`: a stream that
    ends has come to its end. `close()`, leaving a `with`, or dropping it closes the generator at
    the pod; so does nobody's taking an item for 60 s, for until then the call counts as running.
    A task that is cancelled while it waits for an item loses none. An interrupt may: then the
    stream is closed, and says so.
    """

    def __init__(self, streamed: StreamedCall, timeout_s: float) -> None:
        self._streamed = streamed
        self._feed = streamed.feed
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        call = self._streamed.call
        return f"ResponseStream({call.method} of uid {call.uid!r} of {call.service!r})"

    @property
    def is_over(self) -> bool:
        """True once nothing more comes."""
        return self._streamed.is_over

    # Sync.

    def __iter__(self) -> ResponseStream[R]:
        return self

    def __next__(self) -> R:
        item = run(self._streamed.next_item(), self._deadline())
        if item is END:
            raise StopIteration
        self._feed.item = None  # it is delivered
        return item  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the generator at the pod, if it has not come to its end. Waits for nothing."""
        self._streamed.close()

    def __enter__(self) -> ResponseStream[R]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Async.

    def __aiter__(self) -> ResponseStream[R]:
        return self

    async def __anext__(self) -> R:
        item = await run_async(self._streamed.next_item(), self._deadline())
        if item is END:
            raise StopAsyncIteration
        self._feed.item = None
        return item  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        """Do the same as `close`."""
        self.close()

    async def __aenter__(self) -> ResponseStream[R]:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def _deadline(self) -> Deadline:
        return Deadline.after(self._timeout_s)
