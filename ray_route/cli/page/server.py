"""Serves the live page on the loopback address, to whoever has its URL.

The URL holds a token that nobody can guess, since any user of the machine can connect. The `Host`
must be a name of this machine, so that no page from elsewhere can have its own name lead here. All
that is served is read: there is no request that changes anything, and no secret in any answer.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

import ray

from ray_route.cli.cluster import UnknownNameError
from ray_route.cli.output import as_json
from ray_route.cli.page.views import Views
from ray_route.errors import InvalidInputError, RouteError

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
_NAMES = frozenset({LOOPBACK, "localhost", "[::1]"})
_SLOWEST_S = 10.0
_FILES = {
    "": ("page.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
    "flights.js": ("flights.js", "text/javascript"),
    "parts.js": ("parts.js", "text/javascript"),
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the URL holds the token
    "X-Content-Type-Options": "nosniff",
}

Query = dict[str, str]
Answer = tuple[HTTPStatus, str, bytes]


class PageServer(ThreadingHTTPServer):
    """Serves one namespace's page; `port` 0 takes any that is free."""

    daemon_threads = True
    # Two that listen on one port would share its requests, and each refuse the other's.
    allow_reuse_port = False

    def __init__(self, views: Views, port: int) -> None:
        super().__init__((LOOPBACK, port), _Handler)
        self._token = secrets.token_urlsafe(24)
        self.views = views

    @property
    def url(self) -> str:
        """Where the page is, with its token."""
        return f"http://{LOOPBACK}:{self.server_address[1]}/{self._token}/"

    def handle_error(self, *_: Any) -> None:
        """Tell of what went wrong with a connection, unless a browser has just left."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            logger.warning("a request for the live page failed: %r", error)

    def answer(self, host: str, target: str) -> Answer:
        """Answer a request for a path with its query, sent to a host of that name."""
        if host.rpartition(":")[0] not in _NAMES and host not in _NAMES:
            return _told(HTTPStatus.MISDIRECTED_REQUEST, "ask for 127.0.0.1 or localhost")
        split = urlsplit(target)
        token, _, name = split.path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            return _told(HTTPStatus.FORBIDDEN, "the URL that ray-route ui printed has the token")
        if name in _FILES:
            file, kind = _FILES[name]
            return HTTPStatus.OK, kind, files(__package__).joinpath(file).read_bytes()
        if name not in _DOCUMENTS:
            return _told(HTTPStatus.NOT_FOUND, f"there is no {name!r}")
        pairs = parse_qs(split.query, keep_blank_values=True)
        query = {name: values[0] for name, values in pairs.items()}
        return _document(lambda: _DOCUMENTS[name](self.views, query))


def _state(views: Views, query: Query) -> dict[str, Any]:
    router, count = int(query.get("router", 0)), int(query.get("count", 0))
    return views.state(query.get("service"), router, count)


def _explain(views: Views, query: Query) -> dict[str, Any]:
    return views.explain(query.get("uid", ""))


_DOCUMENTS = {"state": _state, "explain": _explain}


def _document(make: Callable[[], dict[str, Any]]) -> Answer:
    """Make a document, or say why there is none: an error never looks like an empty page."""
    try:
        return HTTPStatus.OK, "application/json", as_json(make()).encode()
    except (InvalidInputError, ValueError) as error:
        return _told(HTTPStatus.BAD_REQUEST, error)
    except UnknownNameError as error:
        return _told(HTTPStatus.NOT_FOUND, error)
    except (RouteError, ray.exceptions.RayError, TimeoutError) as error:
        return _told(HTTPStatus.SERVICE_UNAVAILABLE, error)
    except Exception as error:
        logger.exception("the live page could not be made")
        return _told(HTTPStatus.INTERNAL_SERVER_ERROR, repr(error))


def _told(status: HTTPStatus, problem: object) -> Answer:
    first = str(problem).strip().partition("\n")[0]
    return status, "application/json", as_json({"error": first}).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _SLOWEST_S  # a connection that says nothing holds a thread
    server: PageServer

    def do_GET(self) -> None:
        hosts = self.headers.get_all("Host") or [""]
        host = hosts[0] if len(hosts) == 1 else ""
        status, kind, body = self.server.answer(host, self.path)
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "ray_route"

    def log_message(self, *_: object) -> None:
        """Tell nobody: a line would hold the token."""
