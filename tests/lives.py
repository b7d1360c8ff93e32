"""Lives of a service's controller, for tests: made of its own parts, with the real Ray and store.

Each may be dropped after any of its steps; the process of the service's own controller is frozen.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import ray
from deploying import recipe_of
from helpers import unique_name
from services import Counter

import ray_route
from ray_route.clock import Deadline
from ray_route.controller.actor import Controller
from ray_route.controller.keeping import Keeping
from ray_route.controller.looks import Looks
from ray_route.controller.recipe import Recipe
from ray_route.controller.recipes import make_holder
from ray_route.controller.upkeep import Upkeep
from ray_route.controller.wishes import Wishes
from ray_route.protocol.names import RAY_NAMESPACE, controller_name
from ray_route.runtime.waiting import no_check
from ray_route.store.wanted import Upgrade

SOON_S = 120.0


class Life:
    """One life of a service's controller."""

    def __init__(self, recipe: Recipe, actor: str) -> None:
        self.upkeep = Upkeep(recipe, [], actor)
        self.wishes = Wishes(recipe, actor)
        self.keeping = Keeping(recipe, self.upkeep, self.wishes, SOON_S)

    def scaling(self, replicas: int) -> Iterator[str]:
        """Do what a caller's wish does, step by step."""
        self.wishes.claim()
        assert self.wishes.wanted is not None
        self.wishes.write(replace(self.wishes.wanted, replicas=replicas))
        yield "it is written"
        wanted = self.wishes.wanted
        yield from self.upkeep.grow(wanted.indexes, wanted.recipe, {}, Deadline.after(SOON_S))
        yield from self.upkeep.shrink(wanted.indexes, SOON_S, no_check)

    def upgrade(self, recipe: Recipe) -> tuple[str, Upgrade]:
        """Do what a caller's wish does."""
        self.wishes.claim()
        asked = upgrade_to(recipe)
        self.keeping.upgrading.begin(*asked)
        return asked

    def looked_at(self, first: int) -> bool:
        """Look once more; say whether the two pods from that index on are all that there is."""
        self.keeping.look()
        wanted = self.wishes.wanted
        there = sorted(self.upkeep.named()) == [first, first + 1]
        return there and wanted is not None and wanted.upgrade is None

    def looked(self, pods: int) -> bool:
        self.keeping.look()
        return sorted(self.upkeep.named()) == list(range(pods))


def upgrade_to(recipe: Recipe) -> tuple[str, Upgrade]:
    """Make the holder of a recipe; return what a caller asks of a controller then."""
    holder = make_holder(recipe, [], request := unique_name())
    return holder, Upgrade(0, 0, "", 1, SOON_S, SOON_S, request=request)


class Service:
    """A deployed service whose lives follow each other, as Ray would have them."""

    def __init__(self, client: Any, deployment: ray_route.Deployment) -> None:
        self.client, self.service = client, deployment.service
        self.deployment = deployment
        name = controller_name(client.namespace, deployment.service)
        controller = ray.get_actor(name, namespace=RAY_NAMESPACE)
        self.actor = controller._actor_id.hex()
        self.pid = deployment.status().process
        self.recipe = recipe_of(Counter, client, self.service)
        os.kill(self.pid, signal.SIGSTOP)

    def life(self) -> Life:
        return Life(self.recipe, self.actor)

    def asked(self, patch: pytest.MonkeyPatch) -> Controller:
        """Return a life that is asked before its first look, and takes none by itself."""
        with patch.context() as patched:
            here = ray.runtime_context.RuntimeContext
            patched.setattr(here, "get_actor_id", lambda _: self.actor)
            patched.setattr(Looks, "run", lambda _: None)
            return Controller(SOON_S, [], *self.recipe.pieces())

    def alive(self) -> list[int]:
        pods = self.client.pods(self.service).items()
        return [index for index, pod in pods if pod.life is ray_route.Life.ALIVE]
