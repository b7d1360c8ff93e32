"""What is wanted of a deployed service: builds the calls and reads the replies. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ray_route.model import MAX_POD
from ray_route.store.damage import is_number
from ray_route.store.keys import Keys
from ray_route.store.scripts import Call, plain_call, script_call


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a service is to be: `replicas` pods, those of `cordons` closed to new uids.

    `generation` counts the classes that its pods were made of, from 1; `recipe` names the actor
    that holds the present one. `ended` once its shutdown has begun.
    """

    replicas: int
    recipe: str
    cordons: frozenset[int] = frozenset()
    generation: int = 1
    ended: bool = False


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
        fields = self._fields(wanted) if wanted else []
        return script_call("want", [self.keys.wanted(self.service)], [controller, *fields])

    def read(self) -> Call:
        """Read all fields."""
        return plain_call("HGETALL", self.keys.wanted(self.service))

    def is_held(
        self, reply: list[bytes] | dict[bytes, bytes], controller: int, wanted: Wanted | None
    ) -> bool:
        """True if that is what a controller has written."""
        flat = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
        fields = ["controller", controller, *(self._fields(wanted) if wanted else [])]
        return flat == {
            str(name).encode(): str(value).encode()
            for name, value in zip(fields[::2], fields[1::2], strict=True)
        }

    def _fields(self, wanted: Wanted) -> list[object]:
        cordons = ",".join(map(str, sorted(wanted.cordons)))
        return [
            *("actor", self.actor, "replicas", wanted.replicas, "cordons", cordons),
            *("generation", wanted.generation, "recipe", wanted.recipe, "ended", int(wanted.ended)),
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


def _wanted(row: Mapping[bytes, bytes]) -> Wanted | None:
    numbers = [row.get(name, b"") for name in (b"replicas", b"generation")]
    cordons = [part for part in row.get(b"cordons", b"").split(b",") if part]
    if not all(map(is_number, [*numbers, *cordons])) or not 0 < int(numbers[0]) <= MAX_POD + 1:
        return None
    return Wanted(
        replicas=int(numbers[0]),
        recipe=row.get(b"recipe", b"").decode(errors="replace"),
        cordons=frozenset(map(int, cordons)),
        generation=int(numbers[1]),
        ended=row.get(b"ended") == b"1",
    )
