"""What is wanted of a deployed service: builds the calls and reads the replies. No I/O."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import count, islice

from ray_route.model import MAX_POD
from ray_route.policies import Autoscale, size_facts
from ray_route.store.damage import is_number
from ray_route.store.keys import Keys
from ray_route.store.scripts import Call, plain_call, script_call


@dataclass(frozen=True, slots=True)
class Upgrade:
    """An upgrade under way: it leaves generation `number`, whose pods begin at index `first`.

    `recipe` names the holder of what that is made of. Up to `surge` pods more than are wanted may
    be there; each has `start_s` seconds to serve, and is drained within `drain_s`. `back`: a newer
    generation is left, for the one before it. `request` is the wish of the caller who began it.
    """

    number: int
    first: int
    recipe: str
    surge: int = 1
    start_s: float = 60.0
    drain_s: float = 300.0
    back: bool = False
    request: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a service is to be: `replicas` pods, at the lowest indexes from `first` on.

    Those of `gaps` are left out, of the generation of `upgrade`, too. Those of `cordons` are closed
    to new uids. `generation` counts the classes that its pods were made of, from 1; `recipe` names
    the actor that holds the present one. Pods of `upgrade` are to be left for these. `step` counts
    the changes of generations, `ended_upgrades` are the requests of the last upgrades that ended,
    with the word "undone" if one did not succeed. `ended` once the service's shutdown has begun.
    `replicas` is up to the controller by `autoscale`; None: to whoever scales the service.
    Loads are evened out that exceed the mean by more than `tolerance`; None: when somebody asks.
    """

    replicas: int
    recipe: str
    cordons: frozenset[int] = frozenset()
    generation: int = 1
    ended: bool = False
    first: int = 0
    step: int = 0
    upgrade: Upgrade | None = None
    ended_upgrades: tuple[str, ...] = ()
    gaps: frozenset[int] = frozenset()
    autoscale: Autoscale | None = None
    tolerance: float | None = None

    def facts(self) -> dict[str, str]:
        """Return what is compared where a service that is there is deployed again."""
        return size_facts(self.replicas, self.autoscale, self.tolerance)

    @property
    def indexes(self) -> tuple[int, ...]:
        """The indexes of the pods, in order."""
        free = (index for index in count(self.first) if index not in self.gaps)
        return tuple(islice(free, self.replicas))

    def of(self, indexes: Iterable[int]) -> Wanted:
        """Want pods at these indexes, one at least, all from `first` on; while none are left."""
        some = frozenset(indexes)
        return replace(
            self,
            replicas=len(some),
            gaps=frozenset(range(self.first, max(some))) - some,
            cordons=self.cordons & some,
        )

    def scaled(self, replicas: int) -> Wanted:
        """Want so many pods: more at the lowest indexes that are free, fewer from the highest."""
        wanted = self.indexes
        free = (index for index in count(self.first) if index not in wanted)
        return self.of([*wanted[:replicas], *islice(free, max(0, replicas - self.replicas))])

    def including(self, there: Iterable[int]) -> Wanted:
        """Want the pods that are there, too, and all below them but for gaps."""
        some = {*self.indexes, *(index for index in there if index >= self.first)}
        return self.of(some | (set(range(self.first, max(some))) - self.gaps))

    @property
    def recipes(self) -> set[str]:
        """The holders of what the pods that may be there are made of."""
        return {self.recipe, *((self.upgrade.recipe,) if self.upgrade else ())}


@dataclass(frozen=True, slots=True)
class WantedCalls:
    """Builds the calls of one service's controller. `actor` names the one that writes."""

    keys: Keys
    service: str
    actor: str

    def claim(self, least: int) -> Call:
        """Claim the service; replies the controller's incarnation, and the fields (see `held`)."""
        return script_call("claim_service", [self.keys.wanted(self.service)], [least])

    def want(self, controller: int, wanted: Wanted | None) -> Call:
        """Write what is wanted; None: forget it. Replies "ok" or "deposed"."""
        fields = self.fields(wanted) if wanted else []
        return script_call("want", [self.keys.wanted(self.service)], [controller, *fields])

    def read(self) -> Call:
        """Read all fields."""
        return plain_call("HGETALL", self.keys.wanted(self.service))

    def is_held(
        self, reply: list[bytes] | dict[bytes, bytes], controller: int, wanted: Wanted | None
    ) -> bool:
        """True if that is what a controller has written."""
        flat = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
        fields = ["controller", controller, *(self.fields(wanted) if wanted else [])]
        return flat == {
            str(name).encode(): str(value).encode()
            for name, value in zip(fields[::2], fields[1::2], strict=True)
        }

    def fields(self, wanted: Wanted) -> list[object]:
        """Return what is wanted as fields and values, in turn."""
        return [
            *("actor", self.actor, "replicas", wanted.replicas),
            *("cordons", _numbers(wanted.cordons)),
            *("generation", wanted.generation, "recipe", wanted.recipe, "ended", int(wanted.ended)),
            *("first", wanted.first, "step", wanted.step),
            *("gaps", _numbers(wanted.gaps)),
            *("ended_upgrades", ",".join(wanted.ended_upgrades)),
            *(("tolerance", wanted.tolerance) if wanted.tolerance else ()),
            *(_autoscale_fields(wanted.autoscale) if wanted.autoscale else ()),
            *(_upgrade_fields(wanted.upgrade) if wanted.upgrade else ()),
        ]

    def held(self, fields: Iterable[bytes]) -> Wanted | None:
        """Read the fields that a claim found; None if they are not all there, or another actor's.

        What a service of the same name has left behind is nobody's wish.
        """
        flat = list(fields)
        row = dict(zip(flat[::2], flat[1::2], strict=True))
        if row.get(b"actor") != self.actor.encode():
            return None
        return _wanted(row)


def _numbers(some: Iterable[int]) -> str:
    return ",".join(map(str, sorted(some)))


def _autoscale_fields(policy: Autoscale) -> list[object]:
    return [
        *("least", policy.least, "most", policy.most, f"target_{policy.unit}", policy.target),
        *("down_ms", round(policy.down_s * 1_000)),
    ]


def _upgrade_fields(upgrade: Upgrade) -> list[object]:
    return [
        *("leaves", upgrade.number, "leaves_first", upgrade.first),
        *("leaves_recipe", upgrade.recipe, "surge", upgrade.surge),
        *("start_ms", round(upgrade.start_s * 1_000), "drain_ms", round(upgrade.drain_s * 1_000)),
        *("back", int(upgrade.back), "request", upgrade.request),
    ]


def _wanted(row: Mapping[bytes, bytes]) -> Wanted | None:
    numbers = [row.get(name, b"") for name in (b"replicas", b"generation")]
    later = [row.get(name, b"0") for name in (b"first", b"step")]  # not in older ones' fields
    cordons, gaps = (
        [part for part in row.get(name, b"").split(b",") if part] for name in (b"cordons", b"gaps")
    )
    if not all(map(is_number, [*numbers, *later, *cordons, *gaps])):
        return None
    if not 0 < int(numbers[0]) <= MAX_POD + 1:
        return None
    return Wanted(
        replicas=int(numbers[0]),
        recipe=_text(row, b"recipe"),
        cordons=frozenset(map(int, cordons)),
        generation=int(numbers[1]),
        ended=row.get(b"ended") == b"1",
        first=int(later[0]),
        step=int(later[1]),
        upgrade=_upgrade(row),
        ended_upgrades=tuple(filter(None, _text(row, b"ended_upgrades").split(","))),
        gaps=frozenset(map(int, gaps)),
        autoscale=_autoscale(row),
        tolerance=_positive(row, b"tolerance"),
    )


def _autoscale(row: Mapping[bytes, bytes]) -> Autoscale | None:
    numbers = [row.get(name, b"") for name in (b"least", b"most", b"down_ms")]
    uids, load = (_positive(row, name) for name in (b"target_uids", b"target_load"))
    if not all(map(is_number, numbers)) or (uids is None) == (load is None):
        return None
    least, most, down_ms = map(int, numbers)
    return Autoscale(least, most, uids, load, down_ms / 1_000) if 0 < least <= most else None


def _positive(row: Mapping[bytes, bytes], name: bytes) -> float | None:
    try:
        target = float(row.get(name, b""))
    except ValueError:
        return None
    return target if target > 0 and math.isfinite(target) else None


def _upgrade(row: Mapping[bytes, bytes]) -> Upgrade | None:
    names = (b"leaves", b"leaves_first", b"surge", b"start_ms", b"drain_ms")
    numbers = [row.get(name, b"") for name in names]
    if not all(map(is_number, numbers)):
        return None
    number, first, surge, start_ms, drain_ms = map(int, numbers)
    return Upgrade(
        number=number,
        first=first,
        recipe=_text(row, b"leaves_recipe"),
        surge=surge,
        start_s=start_ms / 1_000,
        drain_s=drain_ms / 1_000,
        back=row.get(b"back") == b"1",
        request=_text(row, b"request"),
    )


def _text(row: Mapping[bytes, bytes], name: bytes) -> str:
    return row.get(name, b"").decode(errors="replace")
