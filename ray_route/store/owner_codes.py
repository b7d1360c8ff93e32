"""Codes for the owners of links: what a bulk read brings back is one number for each uid."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ray_route.store.links import EPOCH_DIGITS, parse_link

# Codes of uids that nobody owns. Owners have the codes from 2 on.
NO_LINK, FAILED = 0, 1
FIRST_OWNER = 2

_OWNER = re.compile(rb"[0-9]{1,10}:[0-9]{1,16}:")
_BYTES = b"0123456789:tp"  # that links are written in
_PERHAPS_TOO_GREAT = b":9"  # an epoch of 16 digits
_TWO_EPOCHS = 2 * EPOCH_DIGITS + 1
_ENDS = (EPOCH_DIGITS, _TWO_EPOCHS)


class OwnerCodes:
    """Gives every owner a code, and finds it by the first bytes of a link's value.

    An epoch has 16 digits, so a value less its last 16 bytes, or 33 with the epoch that it
    replaced, is mostly "pod:incarnation:", the same for all uids of an owner. Any other beginning,
    and any strange byte, has it read whole.
    """

    def __init__(self) -> None:
        self.owners: list[tuple[int, int]] = [(-1, -1)] * FIRST_OWNER
        self._by_owner: dict[tuple[int, int], int] = {}
        self._by_start: dict[bytes, int] = {}

    def of(self, values: Sequence[bytes | None]) -> list[int]:
        """Return the codes of many values."""
        together = b"".join(filter(None, values))
        if together.translate(None, _BYTES) or _PERHAPS_TOO_GREAT in together:
            return [NO_LINK if value is None else self._code(value) for value in values]
        # 110 ns a value; splitting each at its colons takes 180 ns.
        get = self._by_start.get
        codes = [NO_LINK if value is None else get(value[:-EPOCH_DIGITS]) for value in values]
        if None not in codes:
            return codes  # type: ignore[return-value]
        self._learn({value[:-digits] for value in values if value for digits in _ENDS})
        return [NO_LINK if value is None else self._found(value) for value in values]

    def _found(self, value: bytes) -> int:
        get = self._by_start.get
        return get(value[:-EPOCH_DIGITS]) or get(value[:-_TWO_EPOCHS]) or self._code(value)

    def _learn(self, starts: set[bytes]) -> None:
        """Remember what values begin with, where that is exactly their owner."""
        whole = filter(_OWNER.fullmatch, starts)
        self._by_start.update((start, self._code(start + b"0")) for start in whole)

    def _code(self, value: bytes) -> int:
        """Return the code of a value's owner; `FAILED` if it is damaged."""
        found = parse_link(value)
        if found is None:
            return FAILED
        owner = found[0]
        code = self._by_owner.setdefault(owner, len(self.owners))
        if code == len(self.owners):
            self.owners.append(owner)
        return code
