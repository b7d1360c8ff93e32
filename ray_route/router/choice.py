"""Choosing a pod for each uid that needs one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ray_route.errors import ConfigError, NoAvailablePodError
from ray_route.model import Link, PodRecord
from ray_route.placement import Strategy
from ray_route.router.census import Census


class Chooser:
    """Applies a placement strategy to what the census knows."""

    def __init__(self, census: Census, strategy: Strategy, namespace: str) -> None:
        self._table = census.table
        self._loads = census.loads
        self._strategy = strategy
        self._namespace = namespace

    def propose(
        self,
        service: str,
        uids: Iterable[str],
        node: str | None,
        previous: Mapping[str, Link] | None = None,
    ) -> dict[str, PodRecord]:
        """Choose a pod for each uid, as if all that is under way to pods had arrived there."""
        pods = self._table.available(service)
        if not pods:
            known = {pod.pod: pod.describe() for pod in self._table.pods(service).values()}
            raise NoAvailablePodError(known=known, namespace=self._namespace, service=service)
        by_index = {pod.pod: pod for pod in pods}
        load = self._loads.load(service, pods)
        owners: dict[str, PodRecord] = {}
        for uid in uids:
            back = previous and by_index.get(previous[uid].pod)
            owner = back or by_index[self._chosen(service, pods, load, uid, node)]
            load[owner.pod] += 1
            owners[uid] = owner
        return owners

    def _chosen(
        self,
        service: str,
        pods: list[PodRecord],
        load: Mapping[int, float],
        uid: str,
        node: str | None,
    ) -> int:
        try:
            chosen = self._strategy(pods, load, uid, node)
        except Exception as error:
            raise ConfigError(
                option="placement", reason=f"the strategy failed: {error!r}", service=service
            ) from error
        if chosen not in load:
            raise ConfigError(
                option="placement",
                reason=f"the strategy chose {chosen!r}, which is not an available pod",
                service=service,
            )
        return chosen
