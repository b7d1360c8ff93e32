"""Choosing a pod for each uid that needs one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ray_route.error_root import in_words
from ray_route.errors import ConfigError, NoAvailablePodError
from ray_route.model import Link, PodRecord
from ray_route.placement import Strategy
from ray_route.router.membership import Membership
from ray_route.state.ramp import Ramps


@dataclass(frozen=True, slots=True)
class Proposal:
    """Which pod each uid is to go to, by index; records and names are those of the chosen."""

    pods: Mapping[int, PodRecord]
    names: Mapping[int, str]
    chosen: Mapping[str, int]
    refused: Mapping[str, ConfigError] = field(default_factory=dict)
    """Uids for which the strategy has chosen nothing that can be used, and why."""

    def owners(self, uids: Iterable[str]) -> list[str]:
        """Write the owners of some uids as the scripts do."""
        names, chosen = self.names, self.chosen
        return [names[chosen[uid]] for uid in uids]

    def arrivals(self) -> list[tuple[PodRecord, int]]:
        """Tell how many uids each pod is to get."""
        return [(self.pods[index], count) for index, count in Counter(self.chosen.values()).items()]


def owner_of(pod: PodRecord) -> str:
    """Write a link's owner as the scripts do."""
    return f"{pod.pod}:{pod.incarnation}"


class Placer:
    """Applies a placement strategy to what the membership knows."""

    def __init__(
        self, membership: Membership, strategy: Strategy, namespace: str, ramp_s: float = 0.0
    ) -> None:
        self._table = membership.table
        self._loads = membership.loads
        self._strategy = strategy
        self._ramps = Ramps(ramp_s) if ramp_s else None
        self._namespace = namespace

    def propose(
        self,
        service: str,
        uids: Iterable[str],
        node: str | None,
        previous: Mapping[str, Link] | None = None,
    ) -> Proposal:
        """Choose a pod for each uid, as if all that is under way to pods had arrived there.

        A strategy that fails for one uid is a refusal of that one alone.
        """
        pods = self._table.available(service)
        if not pods:
            known = {pod.pod: pod.describe() for pod in self._table.pods(service).values()}
            raise NoAvailablePodError(known=known, namespace=self._namespace, service=service)
        load = self._loads.ranked(service, pods)
        ramp = self._ramps.of(service, pods) if self._ramps else None
        chosen: dict[str, int] = {}
        refused: dict[str, ConfigError] = {}
        for uid in uids:
            if ramp:
                ramp.look(load)
            if previous is not None and previous[uid].pod in load:
                index = previous[uid].pod
            else:
                try:
                    index = self._chosen(service, pods, load, uid, node)
                except ConfigError as error:
                    refused[uid] = error
                    continue
            load[index] += 1
            chosen[uid] = index
            if ramp:
                ramp.took(index)
        if ramp:
            ramp.end(load)
        records = self._table.pods(service)
        targets = {index: records[index] for index in set(chosen.values())}
        names = {index: owner_of(pod) for index, pod in targets.items()}
        return Proposal(targets, names, chosen, refused)

    def _chosen(
        self,
        service: str,
        pods: Sequence[PodRecord],
        load: Mapping[int, float],
        uid: str,
        node: str | None,
    ) -> int:
        ids = {"service": service, "uid": uid}
        try:
            chosen = self._strategy(pods, load, uid, node)
            if chosen in load:
                return int(chosen)
            reason = f"the strategy chose {chosen!r}, which is not an available pod"
        except BaseException as error:  # the user's own code, whatever it raises or returns
            reason = f"the strategy failed: {in_words(error)}"
            raise ConfigError(option="placement", reason=reason, **ids) from error
        raise ConfigError(option="placement", reason=reason, **ids)
