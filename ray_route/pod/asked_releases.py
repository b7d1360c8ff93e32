"""Releases that a router has asked for, and the uids that each still waits for."""

from __future__ import annotations

from collections.abc import Iterable

from ray_route.pod.entries import NO_WISHES, Entry, Wish


class AskedReleases:
    """Wishes of uids, by the number of the release: what is taken back is found without a search.

    All that changes an entry's wishes goes this way.
    """

    def __init__(self) -> None:
        self._uids: dict[int, set[str]] = {}

    def __len__(self) -> int:
        return len(self._uids)

    def of(self, number: int) -> Iterable[str]:
        """Return the uids that a release still waits for."""
        return list(self._uids.get(number, ()))

    def add(self, uid: str, entry: Entry, number: int, wish: Wish) -> None:
        """Have a uid given up, as one more asks for."""
        entry.wishes = {**entry.wishes, number: wish}
        self._uids.setdefault(number, set()).add(uid)

    def drop(self, uid: str, entry: Entry, *numbers: int) -> None:
        """Take wishes of a uid back, or have them fulfilled."""
        left = {n: wish for n, wish in entry.wishes.items() if n not in numbers}
        entry.wishes = left or NO_WISHES
        for number in numbers:
            uids = self._uids.get(number, set())
            uids.discard(uid)
            if not uids:
                self._uids.pop(number, None)

    def drop_void(self, entry: Entry, term: int) -> None:
        """Take back those wishes of a uid that are void, or of another term."""
        void = [n for n, wish in entry.wishes.items() if wish.void or wish.term != term]
        if void:
            self.drop(entry.uid, entry, *void)
