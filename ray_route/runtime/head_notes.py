"""Notes that Ray's head keeps, for all processes of its cluster, and for as long as it lives.

What Redis was told it may lose; these are there as long as the actors are of which they speak.
"""

from __future__ import annotations

from ray.experimental import internal_kv

_NAMESPACE = b"ray_route"


def put(name: str, value: bytes) -> None:
    """Note something under a name; returns once the head has it."""
    internal_kv._internal_kv_put(name.encode(), value, overwrite=True, namespace=_NAMESPACE)  # noqa: SLF001 - Serve's way, too


def put_first(name: str, value: bytes) -> None:
    """Note something under a name, unless there is something."""
    internal_kv._internal_kv_put(name.encode(), value, overwrite=False, namespace=_NAMESPACE)  # noqa: SLF001 - as above


def get(name: str) -> bytes | None:
    """Return what was noted under a name last; None: nothing."""
    found: bytes | None = internal_kv._internal_kv_get(name.encode(), namespace=_NAMESPACE)  # noqa: SLF001 - as above
    return found


def delete(name: str) -> None:
    """Forget what was noted under a name."""
    internal_kv._internal_kv_del(name.encode(), namespace=_NAMESPACE)  # noqa: SLF001 - as above


def delete_all(prefix: str) -> None:
    """Forget what was noted under all names that begin so."""
    internal_kv._internal_kv_del(prefix.encode(), del_by_prefix=True, namespace=_NAMESPACE)  # noqa: SLF001 - as above


def names(prefix: str) -> list[str]:
    """Return the names that begin so, and under which something is noted."""
    found: list[bytes] = internal_kv._internal_kv_list(prefix.encode(), namespace=_NAMESPACE)  # noqa: SLF001 - as above
    return [name.decode() for name in found]
