"""Connection URLs: what they may say, and addresses that are safe to print."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ray_route.errors import ConfigError

_SCHEMES = {
    "redis": ("standalone", False),
    "rediss": ("standalone", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
}
_DEFAULT_PORT = {"standalone": 6379, "cluster": 6379, "sentinel": 26379}
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A parsed URL. Its `repr` and `address` hold no user name, password or file name."""

    kind: str
    nodes: tuple[tuple[str, int], ...]
    tls: bool = False
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    db: int = 0
    service: str | None = None
    tls_options: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    sentinel_username: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """Where the store is, for messages."""
        nodes = ",".join(f"{host}:{port}" for host, port in self.nodes)
        return f"{nodes}/{self.service}" if self.service else nodes

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments that every redis-py client of this store takes."""
        options: dict[str, Any] = {"username": self.username, "password": self.password}
        if self.kind != "cluster":
            options["db"] = self.db
        options.update(self._tls())
        return options

    def sentinel_options(self) -> dict[str, Any]:
        """Keyword arguments for the clients of the Sentinels themselves."""
        credentials = {"username": self.sentinel_username, "password": self.sentinel_password}
        return {**credentials, **self._tls()}

    def _tls(self) -> dict[str, Any]:
        return {"ssl": True, **dict(self.tls_options)} if self.tls else {}


def parse_url(url: str) -> StoreUrl:
    """Parse a store URL; raise `ConfigError`, which never repeats the URL, if it is wrong.

    `redis://user:pw@host:6379/0`, `rediss://…?ssl_ca_certs=…` (TLS),
    `redis+cluster://h1:p1,h2:p2`, `redis+sentinel://h1:p1,h2:p2/service-name`, the last two
    also with `rediss+`. User name and password are percent-decoded. They are the servers' own;
    Sentinels that want some too get `?sentinel_username=…&sentinel_password=…`. TLS and its
    options hold for servers and Sentinels alike.
    """
    if not isinstance(url, str):
        raise _bad("must be a string")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise _bad(f"must begin with one of {', '.join(f'{name}://' for name in _SCHEMES)}")
    kind, tls = _SCHEMES[scheme]
    try:
        parts = urlsplit(f"//{rest}")
    except ValueError:  # its text repeats the URL
        raise _bad("can't be parsed: percent-encode what is special in user and password") from None
    if parts.fragment:
        raise _bad("has a fragment: percent-encode '#' in user and password")
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    db, service = _path(kind, parts.path.strip("/"))
    options = _query(parts.query, kind, tls=tls)
    return StoreUrl(
        kind=kind,
        nodes=tuple(_node(kind, host) for host in hosts.split(",")),
        tls=tls,
        username=unquote(username) or None,
        password=unquote(password) or None,
        db=db,
        service=service,
        tls_options=tuple(item for item in options.items() if item[0] in _TLS_OPTIONS),
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
    )


def _bad(reason: str) -> ConfigError:
    return ConfigError(option="redis_url", reason=reason)


def _node(kind: str, host: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{host}")
        port = parts.port
    except ValueError:
        raise _bad("a port must be a number up to 65535") from None
    if not parts.hostname or port == 0:
        raise _bad("names no host, or port 0")
    return parts.hostname, port or _DEFAULT_PORT[kind]


def _path(kind: str, path: str) -> tuple[int, str | None]:
    if kind == "sentinel":
        if not path:
            raise _bad("a Sentinel URL must end in /service-name")
        return 0, path
    if kind == "cluster" and path not in ("", "0"):
        raise _bad("a Redis Cluster has database 0 alone")
    if path and not (path.isascii() and path.isdigit()):
        raise _bad("the path must be a database number")
    return int(path or 0), None


def _query(query: str, kind: str, *, tls: bool) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = (*(_TLS_OPTIONS if tls else ()), *(_SENTINEL_OPTIONS if kind == "sentinel" else ()))
    for name in options:
        if name not in known:
            where = f"; known are {', '.join(known)}" if known else " without TLS (rediss)"
            raise _bad(f"a query option is unknown{where}; percent-encode '?' in a password")
    return options
