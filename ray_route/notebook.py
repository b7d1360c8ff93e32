"""How values look in a notebook: as tables, in HTML, with all that comes from outside escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from html import escape
from typing import Any

_LEFT = ' style="text-align:left"'


class Shown:
    """A dataclass that a notebook shows as a table of its fields. Asks nobody."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        shown: Any = self
        named = {field.name: getattr(self, field.name) for field in fields(shown)}
        return facts(type(self).__name__, named)


def facts(title: str, named: Mapping[str, Any]) -> str:
    """Return a table of facts, each with its name."""
    return _table(title, "", named.items())


def table(title: str, rows: Sequence[Shown]) -> str:
    """Return a table of values of one class, each in a row."""
    names: list[str] = [field.name for field in fields(rows[0])] if rows else []  # type: ignore[arg-type]
    head = "".join(f"<th{_LEFT}>{escape(name)}</th>" for name in names)
    cells = ([getattr(row, name) for name in names] for row in rows)
    return _table(title, f"<thead><tr>{head}</tr></thead>", cells)


def _table(title: str, head: str, rows: Iterable[Sequence[Any]]) -> str:
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    caption = f"<caption{_LEFT}><b>{escape(title)}</b></caption>"
    return f"<table>{caption}{head}<tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    return f"<td{_LEFT}>{_inner(value)}</td>"


def _inner(value: Any) -> str:
    if isinstance(value, Shown):
        return value._repr_html_()
    if isinstance(value, Mapping):
        return _lines(f"{name}: {each}" for name, each in value.items())
    if isinstance(value, (tuple, list, frozenset)):
        return _lines(map(str, value))
    shown = value.value if isinstance(value, Enum) else value
    return _lines((f"{shown:g}" if isinstance(shown, float) else str(shown)).splitlines())


def _lines(lines: Iterable[str]) -> str:
    return "<br>".join(map(escape, lines))
