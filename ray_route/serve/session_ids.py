"""Where a request's session id is found: header, cookie, query, path, JSON body; a call's argument.

A source is a text such as "cookie:sid", "path:/rooms/{session}", "json:metadata.user".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from ray_route.errors import ConfigError, InvalidInputError
from ray_route.model import check_uid

Scope = Mapping[str, Any]
_Find = Callable[[Scope], "str | None"]

_OPTION = "session_id_from"
_KINDS = "header:NAME, cookie:NAME, query:NAME, path:/a/{session}, json:FIELD, argument:FIELD"
_FIELD_KINDS = ("json", "argument")
_SHOWN = 200


class InvalidSessionError(InvalidInputError):
    """A request names its session by what can't be an id: HTTP status 400, nothing has run."""


class SessionIds:
    """Finds the session id of requests: the first source that has one wins.

    Raises `ConfigError` for a source that is none. Fields of the body come last, since a body is
    read only where nothing else names the session.
    """

    def __init__(self, sources: Sequence[str] = ()) -> None:
        _check_list(sources)
        parsed = [(source, *_parsed(source)) for source in sources]
        self._in_scope = [
            (source, _FINDERS[kind](arg)) for source, kind, arg in parsed if kind in _FINDERS
        ]
        self._fields, self._of_argument = (
            [(source, arg.split(".")) for source, kind, arg in parsed if kind == wanted]
            for wanted in _FIELD_KINDS
        )
        kinds = [kind == "json" for _, kind, _ in parsed]
        if kinds != sorted(kinds):
            raise ConfigError(option=_OPTION, reason="fields of the body (json:…) come last")

    def __bool__(self) -> bool:
        """True if HTTP requests name their session."""
        return bool(self._in_scope or self._fields)

    @property
    def read_bodies(self) -> bool:
        """True if the body of a request may name its session."""
        return bool(self._fields)

    def in_scope(self, scope: Scope) -> str | None:
        """Return the id that all but the body tells; raise `InvalidSessionError` for a bad one."""
        for source, find in self._in_scope:
            try:
                found = find(scope)
            except UnicodeDecodeError as error:
                raise _invalid(source, "?", "it is no UTF-8") from error
            if found:
                return _checked(source, found)
        return None

    def in_body(self, body: bytes) -> str | None:
        """Return the id that a JSON body tells; None for what is no JSON: that is the user's."""
        try:
            whole = json.loads(body)
        except (ValueError, RecursionError):
            return None
        for source, keys in self._fields:
            found = _text(source, _nested(whole, keys))
            if found:
                return _checked(source, found)
        return None

    def in_argument(self, args: Sequence[Any]) -> str | None:
        """Return the id that the first argument of a handle's call tells, of any length.

        Raises `InvalidSessionError` for what is neither a text nor a whole number.
        """
        for source, keys in self._of_argument if args else ():
            found = _text(source, _nested(args[0], keys, _attribute))
            if found:
                return found
        return None


def has_json(scope: Scope) -> bool:
    """True for a request whose body says that it is JSON."""
    if scope["type"] != "http":
        return False
    media = (_header(scope, b"content-type") or b"").split(b";")[0].strip().lower()
    return media == b"application/json" or media.endswith(b"+json")


def content_length(scope: Scope) -> int | None:
    """Return how many bytes a request's body has; None: it does not say."""
    told = _header(scope, b"content-length")
    return int(told) if told is not None and told.isdigit() else None


# Sources.


def _check_list(sources: Sequence[str]) -> None:
    listed = isinstance(sources, (list, tuple)) and all(isinstance(one, str) for one in sources)
    if not listed:
        raise ConfigError(option=_OPTION, reason=f"must be a list of texts: {_KINDS}")


def _parsed(source: str) -> tuple[str, str]:
    kind, _, argument = source.partition(":")
    if not argument or kind not in (*_FINDERS, *_FIELD_KINDS):
        raise ConfigError(option=_OPTION, reason=f"{source!r} is none of {_KINDS}")
    return kind, argument


def _of_header(name: str) -> _Find:
    wanted = name.lower().encode()

    def find(scope: Scope) -> str | None:
        value = _header(scope, wanted)
        return None if value is None else value.decode().strip()

    return find


def _of_cookie(name: str) -> _Find:
    def find(scope: Scope) -> str | None:
        for value in _headers(scope, b"cookie"):
            for pair in value.decode().split(";"):
                key, _, told = pair.strip().partition("=")
                if key == name and told.strip('"'):
                    return told.strip('"')
        return None

    return find


def _of_query(name: str) -> _Find:
    def find(scope: Scope) -> str | None:
        query = scope.get("query_string", b"").decode()
        return next(
            (value for key, value in parse_qsl(query, errors="strict") if key == name), None
        )

    return find


def _of_path(template: str) -> _Find:
    pattern = _pattern(template)

    def find(scope: Scope) -> str | None:
        matched = pattern.match(_path(scope))
        return matched["session"] if matched else None

    return find


def _pattern(template: str) -> re.Pattern[str]:
    """Make the pattern of a path that begins so; `{other}` stands for any one segment."""
    if not template.startswith("/") or template.count("{session}") != 1:
        reason = f"the path {template!r} must begin with / and name {{session}} once"
        raise ConfigError(option=_OPTION, reason=reason)
    parts = re.split(r"(\{\w+\})", template.rstrip("/"))
    return re.compile("".join(map(_segment, parts)) + r"(?=/|$)")


def _segment(part: str) -> str:
    if part == "{session}":
        return "(?P<session>[^/]+)"
    return "[^/]+" if re.fullmatch(r"\{\w+\}", part) else re.escape(part)


_FINDERS: dict[str, Callable[[str], _Find]] = {
    "header": _of_header,
    "cookie": _of_cookie,
    "query": _of_query,
    "path": _of_path,
}


# Requests.


def _path(scope: Scope) -> str:
    """Return the path below the application's prefix."""
    path, root = str(scope.get("path", "")), str(scope.get("root_path", "")).rstrip("/")
    under = root and (path == root or path.startswith(root + "/"))
    return path[len(root) :] if under else path


def _headers(scope: Scope, name: bytes) -> Iterable[bytes]:
    return (value for key, value in scope.get("headers", ()) if key.lower() == name)


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next(iter(_headers(scope, name)), None)


def _nothing(_: Any, __: str) -> None:
    """Return what a text or a number of a JSON body has within it."""


def _attribute(value: Any, name: str) -> Any:
    found = getattr(value, name, None)
    return None if callable(found) else found


def _nested(value: Any, keys: list[str], within: Callable[[Any, str], Any] = _nothing) -> Any:
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            value = within(value, key)
    return value


def _text(source: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise _invalid(source, str(value)[:_SHOWN], "it is neither a text nor a whole number")


def _checked(source: str, found: str) -> str:
    try:
        return check_uid(found)
    except InvalidInputError as error:
        raise _invalid(source, found[:_SHOWN], error.reason) from error


def _invalid(source: str, value: str, reason: str) -> InvalidSessionError:
    return InvalidSessionError(
        argument=f"the session id of a request ({source})", value=value, reason=reason
    )
