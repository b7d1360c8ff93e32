"""What mypy and pyright know of handles. Never run; there an unused ignore is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from typing import Any

    from typing_extensions import assert_type

    from ray_route import Response, ResponseStream, RouteClient, ServiceHandle, UidHandle

    class Room:
        def say(self, text: str, *, loudly: bool = False) -> int:
            return len(text) + loudly

        def history(self, last: int) -> Iterator[str]:
            yield from ["hello"] * last

        async def chat(self, text: str) -> AsyncIterator[bytes]:
            yield text.encode()

        async def hear(self, times: int) -> list[str]:
            return ["hello"] * times

    async def check(client: RouteClient) -> None:
        rooms = client.service("rooms", Room)
        assert_type(rooms, ServiceHandle[Room])
        assert_type(rooms["ann"], UidHandle[Room])
        ann = rooms["ann"].options(timeout_s=5, idempotent=True)
        assert_type(ann[Room.say].remote("hello", loudly=True), Response[int])
        assert_type(ann[Room.say].remote("hello").result(), int)
        assert_type(ann[Room.hear].remote(2).result(timeout_s=1), list[str])
        assert_type(await ann[Room.hear].remote(2), list[str])

        assert_type(ann[Room.history].remote(3), ResponseStream[str])
        assert_type(next(ann[Room.history].remote(3)), str)
        async for piece in ann[Room.chat].remote("hi"):
            assert_type(piece, bytes)

        once = ann[Room.say].options(timeout_s=1)
        assert_type(once.remote("hello"), Response[int])
        once.remote(3)  # type: ignore[arg-type]
        assert_type(ann[Room.chat].options(timeout_s=1).remote("hi"), ResponseStream[bytes])

        ann[Room.say].remote(3)  # type: ignore[arg-type]
        ann[Room.say].remote()  # type: ignore[call-arg]
        ann[Room.say].remote("hello", softly=True)  # type: ignore[call-arg]
        ann[str.upper].remote()  # type: ignore[index]
        ann.options(patience=5)  # type: ignore[call-arg]
        rooms[3]  # type: ignore[index]

        # By name anything goes, as with Ray's own handles; without a class, too.
        assert_type(ann.say.remote(3), Any)
        assert_type(await client.service("rooms")["ann"].say.remote(3), Any)
