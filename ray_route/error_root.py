"""The root of the errors of `ray_route.errors`: what all of them have and do alike."""

from __future__ import annotations

from copy import copy
from typing import Any, TypeVar

_SHOWN_CHARACTERS = 80
_TOLD_CHARACTERS = 2_000

Kind = TypeVar("Kind", bound="RouteError")


def shown(value: object) -> str:
    """Return a value as a message shows it: on one line, and not much of a long one."""
    return _shortened(value, _SHOWN_CHARACTERS)


def in_words(error: BaseException) -> str:
    """Return what the user's own code has raised as part of a reason, whatever it is."""
    return _shortened(error, _TOLD_CHARACTERS)


def _shortened(value: object, most: int) -> str:
    try:
        text = repr(value)
    except BaseException:  # noqa: BLE001 - the user's own code
        text = f"<{type(value).__name__}, which can't be shown>"
    return text if len(text) <= most else text[: most - 1] + "…"


class RouteError(Exception):
    """Root of all errors of ray_route.

    Attributes that every error has, `None` where they do not apply: `namespace`, `service`,
    `uid`, `pod`.
    """

    namespace: str | None = None
    service: str | None = None
    uid: str | None = None
    pod: int | None = None
    hint: str = ""

    def __init__(self, **facts: Any) -> None:
        super().__init__()
        self._facts = facts
        self.__dict__.update(facts)

    def _what(self) -> str:
        return "routing failed"

    def _where(self) -> str:
        ids = ((name, getattr(self, name)) for name in ("namespace", "service", "uid", "pod"))
        listed = ", ".join(f"{name}={shown(value)}" for name, value in ids if value is not None)
        return f" ({listed})" if listed else ""

    def __str__(self) -> str:
        hint = f"; {self.hint}" if self.hint else ""
        return f"{self._what()}{self._where()}{hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Without its constructor, which would shorten again what was shortened.
        return type(self).__new__, (type(self),), {"_facts": self._facts, **self._facts}

    def about(self, **ids: Any) -> RouteError:
        """Return the same error with these ids, for one of many whom it concerns."""
        told = copy(self)
        told.__dict__.update(ids, _facts={**self._facts, **ids})
        return told

    def told_as(self, kind: type[Kind]) -> Kind:
        """Return the same as an error of another kind, which has the same attributes."""
        told = kind.__new__(kind)
        told.__dict__.update(self._facts, _facts=self._facts)
        return told
