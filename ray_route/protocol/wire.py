"""How look-ups travel between a client process and its router: as bytes, the answers in columns.

Ray passes bytes on as they are, and has a pickler made for anything else: a lone look-up takes
150 µs less this way, there and back. Of many, one takes 1.1 µs instead of 4 µs: six columns of
plain numbers are pickled and read back faster than as many objects.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from itertools import starmap
from typing import Any

from ray_route.errors import RouteError
from ray_route.model import Link, make_link

Answer = Link | RouteError

_PROTOCOL = 5


def pack_question(service: str, wanted: Mapping[str, int], node: str | None = None) -> bytes:
    """Pack a question about uids, each with the least epoch that its answer may have."""
    return pickle.dumps((service, wanted, node), _PROTOCOL)


def unpack_question(question: bytes) -> tuple[str, dict[str, int], str | None]:
    """Return the service, what is wanted, and the asker's node."""
    service, wanted, node = pickle.loads(question)  # noqa: S301 - Ray brought it, which pickles
    return service, wanted, node


def pack_answers(answers: Sequence[Answer | None]) -> bytes:
    """Pack one answer for each uid that was asked for, in that order; None: it has no link."""
    others = {i: answer for i, answer in enumerate(answers) if answer.__class__ is not Link}
    links: Sequence[Any] = answers
    if others:
        links = [answer for i, answer in enumerate(answers) if i not in others]
    columns = (
        [link.pod for link in links],
        [link.incarnation for link in links],
        [link.epoch for link in links],
        [link.persistent for link in links],
        [link.lease_s for link in links],
        [link.replaced for link in links],
    )
    return pickle.dumps((columns, others), _PROTOCOL)


def unpack_answers(packed: bytes) -> list[Answer | None]:
    """Return the answers in the order in which the uids were asked for."""
    columns, others = pickle.loads(packed)  # noqa: S301 - see above
    links = starmap(make_link, zip(*columns, strict=True))
    if not others:
        return list(links)
    count = len(columns[0]) + len(others)
    return [others[i] if i in others else next(links) for i in range(count)]
