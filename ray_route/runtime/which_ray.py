"""Which Ray a process joins: one rule for `connect`, `deploy`, agents and commands.

1. The one that it has joined already.
2. The one that is named: by `--address`, else by `RAY_ADDRESS`. `local` is a new one.
3. The one that `ray start` has started on this machine last, if it runs still.
4. The one of this user on this machine in which ray_route is used, whichever program started it.
   If there are several, one must be named.
5. None: then `connect`, `deploy`, agents, `demo` and `bench` start one; other commands start none.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from ray._private.utils import read_ray_address

from ray_route.clock import Deadline
from ray_route.errors import ConfigError, RayUnavailableError
from ray_route.runtime.local_rays import LocalRay, local_rays

VARIABLE = "RAY_ADDRESS"
NEW = "local"
_ANY = "auto"

_ANSWER_S = 3.0
# What a client of gRPC says first, and the first byte but the length of what a server says first.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4
_HEAD = 9

_NOBODY = "nothing listens there"
_NO_RAY = "what listens there is no Ray"


def which_ray(named: str | None, deadline: Deadline) -> str:
    """Return the address of the Ray to join; `NEW` where there is none.

    Raises `RayUnavailableError` if the one that is meant does not answer, `ConfigError` if it is
    not clear which is meant.
    """
    address = named or os.environ.get(VARIABLE)
    if address and address != _ANY:
        _check_answers(address, "" if named else f"{VARIABLE} says so; ", deadline)
        return address
    found = _started_last(deadline) or _only(local_rays(), deadline)
    if found is None and address == _ANY:
        raise no_ray()
    return found or NEW


def no_ray(named: str | None = None) -> RayUnavailableError:
    """Make the error where none is found, or a new one is asked for, and none may be started."""
    if NEW in (named, os.environ.get(VARIABLE)):
        return RayUnavailableError(address=None, reason=f"`{NEW}` asks for a new one; none starts")
    reason = "none in which ray_route is used runs on this machine"
    others = ", ".join(map(str, local_rays()))
    if others:
        reason += f"; to join another, name it by --address or {VARIABLE}: {others}"
    return RayUnavailableError(address=None, reason=reason)


def is_own(address: str) -> bool:
    """True if an address is that of a Ray of this user on this machine."""
    return address in {each.address for each in local_rays()}


def _started_last(deadline: Deadline) -> str | None:
    """Return what `ray start` has left behind, unless that Ray has been killed since."""
    address = read_ray_address()
    if not address:
        return None
    problem = _problem(address, deadline)
    if problem in (_NOBODY, _NO_RAY):
        return None
    if problem:
        raise RayUnavailableError(address=address, reason=f"`ray start` named it; {problem}")
    return address


def _only(rays: Sequence[LocalRay], deadline: Deadline) -> str | None:
    used = [each for each in rays if each.routes]
    if len(used) > 1:
        listed = ", ".join(map(str, used))
        raise ConfigError(
            option=VARIABLE,
            reason=f"must say which Ray is meant (`{NEW}`: a new one), several on this machine use "
            f"ray_route: {listed}",
        )
    for each in used:
        _check_answers(each.address, "it runs on this machine; ", deadline)
        return each.address
    return None


def _check_answers(address: str, why: str, deadline: Deadline) -> None:
    problem = _problem(address, deadline)
    if problem:
        raise RayUnavailableError(address=address, reason=f"{why}{problem}")


def _problem(address: str, deadline: Deadline) -> str | None:
    """Say what is wrong with an address, if that is clear: Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return None  # a word of Ray's
    seconds = min(_ANSWER_S, deadline.remaining())
    try:
        with socket.create_connection((host.strip("[]"), int(port)), seconds) as connection:
            return None if _speaks_grpc(connection) else _NO_RAY
    except TimeoutError:
        return f"it does not answer within {seconds:.1g} s"
    except (OSError, OverflowError):
        return _NOBODY


def _speaks_grpc(connection: socket.socket) -> bool:
    """True if a server says what one of gRPC says first; with TLS that can't be seen."""
    if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
        return True
    connection.sendall(_HELLO)
    said = b""
    while len(said) < _HEAD:
        more = connection.recv(_HEAD - len(said))
        if not more:
            return False
        said += more
    return said[3] == _SETTINGS
