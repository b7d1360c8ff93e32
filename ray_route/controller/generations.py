"""How a service goes from one generation of its pods to the next, and back: plain values, no I/O.

Each generation has indexes of its own, so that an index alone tells of which class its pod is,
whoever has died meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ray_route.store.wanted import Upgrade, Wanted

# So many upgrades that have ended: whoever began one may hear of that after the next has begun.
_REMEMBERED = 8


def upgraded(wanted: Wanted, taken: Iterable[int], recipe: str, how: Upgrade) -> Wanted:
    """Want the next generation, of that recipe, at the lowest indexes of which none is `taken`."""
    leaves = replace(
        how, number=wanted.generation, first=wanted.first, recipe=wanted.recipe, back=False
    )
    left = wanted.upgrade
    first = _free({*taken, *wanted.indexes, *wanted.gaps}, wanted.replicas)
    return replace(
        wanted,
        generation=max(wanted.generation, left.number if left else 0) + 1,
        recipe=recipe,
        first=first,
        step=wanted.step + 1,
        upgrade=leaves,
        ended_upgrades=_ended_upgrades(wanted),
    )


def turned_back(wanted: Wanted) -> Wanted:
    """Want the generation before: what the upgrade has made so far is left again."""
    assert wanted.upgrade is not None
    before = wanted.upgrade
    left = replace(
        before, number=wanted.generation, first=wanted.first, recipe=wanted.recipe, back=True
    )
    return replace(
        wanted,
        generation=before.number,
        recipe=before.recipe,
        first=before.first,
        step=wanted.step + 1,
        upgrade=left,
    )


def completed(wanted: Wanted) -> Wanted:
    """Want what is there once nothing of the other generation is left."""
    assert wanted.upgrade is not None
    return replace(
        wanted.of(wanted.indexes),
        step=wanted.step + 1,
        upgrade=None,
        ended_upgrades=_ended_upgrades(wanted),
    )


def newer(found: Wanted | None, planned: Wanted | None) -> Wanted | None:
    """Return what a controller's earlier life wanted, of what Redis has and what Ray has noted.

    Ray's note is made at each change of generations, so it knows of no later scaling or cordon.
    Redis may have lost what it was told, or be of yesterday.
    """
    if planned is None or (found is not None and found.step > planned.step):
        return found
    if found is None or found.step < planned.step:
        least = replace(planned.of([planned.first]), cordons=frozenset())
        return planned if planned.upgrade else least
    later = {name: getattr(found, name) for name in ("replicas", "gaps", "cordons", "ended")}
    return replace(planned, **later)


def _ended_upgrades(wanted: Wanted) -> tuple[str, ...]:
    """Return the last ones, that which is under way among them: it ends now."""
    if wanted.upgrade is None:
        return wanted.ended_upgrades
    ended = f"{wanted.upgrade.request}{' undone' if wanted.upgrade.back else ''}"
    return (*wanted.ended_upgrades, ended)[-_REMEMBERED:]


def _free(taken: set[int], count: int) -> int:
    first = 0
    while block := taken & set(range(first, first + count)):
        first = max(block) + 1
    return first
