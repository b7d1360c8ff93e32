"""Opening a namespace: on a safe server only, and with what it was given at first use."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from ray_route.config import RouteConfig
from ray_route.errors import ConfigError, DamagedKeyError, UnsafeStoreError
from ray_route.store.connect import Store
from ray_route.store.damage import is_number, shown
from ray_route.store.keys import Keys
from ray_route.store.scripts import Call, plain_call, script_call

LAYOUT = 2
"""1: links did not name the epoch that they replaced."""


def open_namespace(store: Store, namespace: str, options: dict[str, Any]) -> RouteConfig:
    """Refuse an unsafe store; fix layout and options at first use; return the options in force.

    What leases rest on is kept in Redis, so that a router made anew by anyone, and every pod,
    counts by the same durations. Raises `UnsafeStoreError` for a server that could lose or
    refuse links, or that holds this namespace in another layout; `ConfigError` for other
    options than those in force. Nothing is written to an unsafe server.
    """
    for info in store.infos():
        check_safe(store.url.address, info)
    wanted = RouteConfig.of(options)
    keys = Keys(namespace, wanted.shards)
    args = [LAYOUT, wanted.shards, json.dumps(wanted.durable())]
    layout, *rest = store.one(script_call("open_namespace", [keys.meta], args))
    if parse_layout(keys, layout) != LAYOUT:
        raise UnsafeStoreError(
            address=store.url.address,
            reason=f"namespace {namespace!r} has data layout {int(layout)}, not {LAYOUT}",
            fix="use the ray_route version that wrote it, or another namespace",
        )
    held = RouteConfig.of({**options, **parse_options(keys, *rest).durable()})
    check_options(namespace, held, options)
    return held


def restore_meta(keys: Keys, config: RouteConfig, router: int, token: int) -> Call:
    """Write back what a namespace runs with, after Redis may have lost it, and unseal it.

    Replies "ok", or "deposed": a younger router decides.
    """
    args = [LAYOUT, config.shards, json.dumps(config.durable()), router, token]
    return script_call("restore_meta", [keys.meta], args)


def look(keys: Keys, router: int, *, settled: bool = True) -> Call:
    """Note that a router looks at its pods; Redis refuses that when it refuses renewals.

    `settled`: the next look is to count from this one. Replies "ok" and the microseconds since the
    last look (-1: there was none), or "deposed".
    """
    return script_call("look", [keys.meta], [router, int(settled)])


def seal(keys: Keys, token: int, servers: str, home: str) -> Call:
    """Note that the namespace is whole on these servers (see `AsyncStore.servers`).

    After a recovery's last write; `servers` were read before it began, `home` of them had the
    namespace's own keys. Pods claim their indexes only in a sealed namespace, and a router that
    starts on the same servers knows that nothing is lost. Replies "ok", or "lost": begin anew.
    """
    return script_call("seal", [keys.meta], [token, servers, home])


def read_seal(keys: Keys) -> Call:
    """Read what `seal` wrote last."""
    return plain_call("HGET", keys.meta, "sealed")


def read_looked(keys: Keys) -> Call:
    """Read when a router looked last at pods that had all been heard: by Redis' clock, in µs."""
    return plain_call("HGET", keys.meta, "looked")


def parse_looked(stored: bytes | None) -> int | None:
    """Read that moment; None if there is none, or it is damaged."""
    return int(stored) if stored is not None and is_number(stored) else None


def read_whole(keys: Keys) -> Call:
    """Read what `is_whole` needs."""
    return plain_call("HMGET", keys.meta, "sealed", "home", "layout", "shards", "options")


def is_whole(
    keys: Keys,
    reply: list[bytes | None],
    config: RouteConfig,
    servers: Collection[str],
    home: str,
    *,
    others_away: bool = False,
) -> bool:
    """True if the namespace is sealed on these servers, and says what its router runs with.

    With `others_away` it may be sealed on more. Its own keys must be where they were: in a Cluster
    they may have been lost by a failover, and then have moved to one of these.
    """
    sealed, sealed_home, layout, shards, options = reply
    if sealed is None or sealed_home != home.encode():
        return False
    named, there = set(sealed.decode(errors="replace").split(",")), {*servers, home}
    if not named.issuperset(there) or (len(named) != len(there) and not others_away):
        return False
    try:
        says = parse_options(keys, shards, options)
    except DamagedKeyError:
        return False
    return layout == b"%d" % LAYOUT and says.durable() == config.durable()


def look_up_namespace(store: Store, namespace: str) -> tuple[Keys, RouteConfig] | None:
    """Return the keys and the durable options of a namespace; None if nobody has opened it.

    Changes nothing, and checks nothing of the server. Raises `DamagedKeyError`.
    """
    keys = Keys(namespace, 1)
    shards, options = store.one(plain_call("HMGET", keys.meta, "shards", "options"))
    if shards is None and options is None:
        return None
    config = parse_options(keys, shards, options)
    return Keys(namespace, config.shards), config


def parse_layout(keys: Keys, stored: bytes) -> int:
    """Read the layout version of a namespace; raise `DamagedKeyError`."""
    if not is_number(stored):
        raise _damaged(keys, f"layout {shown(stored)}")
    return int(stored)


def parse_options(keys: Keys, shards: bytes | None, options: bytes | None) -> RouteConfig:
    """Read the shard count and the durable options of a namespace; raise `DamagedKeyError`.

    The options have the shard count too: what does not agree is damaged.
    """
    if shards is None or not is_number(shards):
        raise _damaged(keys, f"shards {shown(shards or b'')}")
    try:
        config = RouteConfig.of(dict(json.loads(options or b"")))
    except (ValueError, TypeError, RecursionError, ConfigError) as error:
        raise _damaged(keys, f"options {shown(options or b'')} ({error})") from error
    if config.shards != int(shards):
        raise _damaged(keys, f"{int(shards)} shards, and options that say {config.shards}")
    return config


def _damaged(keys: Keys, reason: str) -> DamagedKeyError:
    return DamagedKeyError(key=keys.meta, reason=reason, namespace=keys.namespace)


def check_options(namespace: str, held: RouteConfig, options: dict[str, Any]) -> None:
    """Raise `ConfigError` if a namespace runs with other options than these."""
    differing = held.differing(options)
    if differing:
        in_force = ", ".join(f"{name}={getattr(held, name)!r}" for name in differing)
        raise ConfigError(
            option=", ".join(differing),
            reason=f"the namespace runs with {in_force}, as its first client decided; "
            "use another namespace, or delete its meta key while nothing of it runs",
            namespace=namespace,
        )


def check_safe(address: str, info: dict[str, Any]) -> None:
    """Raise `UnsafeStoreError` if a server with this INFO would lose or refuse links.

    INFO says it all and is allowed where CONFIG is not, as on managed servers.
    """

    def refuse(reason: str, fix: str) -> None:
        raise UnsafeStoreError(address=address, reason=reason, fix=fix)

    version = str(info.get("redis_version", "0"))
    major, minor = (int(part) for part in re.findall(r"\d+", f"{version}.0")[:2])
    if (major, minor) < (6, 2):
        refuse(f"it is Redis {version}", "upgrade to Redis 6.2 or Valkey 7.2 at least")
    if info.get("role") != "master":
        refuse("it is a read-only replica", "connect to its primary, or through Sentinel")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        refuse(
            f"its eviction policy {policy} may evict links", "set maxmemory-policy to noeviction"
        )
