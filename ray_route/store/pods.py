"""The pod table in Redis: builds the calls and reads the replies. Nothing here does I/O."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ray_route.model import Life, PodRecord, RoutingState
from ray_route.protocol.commands import Address
from ray_route.store.keys import Keys
from ray_route.store.scripts import Call, plain_call, script_call

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who claims a pod index. `process` names one process for ever (see `agent`)."""

    service: str
    pod: int
    process: str
    node: str
    actor: str


@dataclass(frozen=True, slots=True)
class PodCalls:
    """Builds the calls on pod tables."""

    keys: Keys

    def claim(self, who: Identity, state: RoutingState) -> Call:
        """Claim an index.

        Replies "ok", the incarnation, the record's sequence number and the newest router's
        incarnation; or, with the ms to wait before another attempt, "held": another process has
        the index, and its life has not ended; or "unsealed": Redis has lost the tables, and the
        router must write them back first.
        """
        args = [who.pod, who.process, who.service, who.node, who.actor]
        keys = [self.keys.pods(who.service), self.keys.services, self.keys.meta]
        return script_call("claim", keys, [*args, state.value])

    def renew(
        self,
        who: Identity,
        incarnation: int,
        load: float,
        state: RoutingState,
        seq: int,
        *,
        lapsed: bool,
    ) -> Call:
        """Renew a lease, on a full server too; `seq` is the sequence number told last.

        Replies "ok", the record's new sequence number, the newest router's incarnation, and 1 if
        Redis had lost something of the record; or "gone"; or "superseded". `lapsed` notes that
        the pod serves nobody until a router has vouched for it.
        """
        args = [
            who.pod,
            incarnation,
            repr(float(load)),
            who.service,
            who.process,
            who.node,
            who.actor,
            state.value,
            seq,
            int(lapsed),
        ]
        keys = [self.keys.pods(who.service), self.keys.services, self.keys.meta]
        return script_call("renew", keys, args)

    def declare_gone(self, service: str, pod: PodRecord, router: int, *, silent: bool) -> Call:
        """End an incarnation's life. If it is only silent, its record must not have moved on.

        Replies "ok", "superseded", "renewed", "absent", or "deposed": a younger router decides.
        """
        seq = str(pod.seq) if silent else ""
        args = [pod.pod, pod.incarnation, Life.GONE.value, seq, router]
        return script_call("end_life", self._table(service), args)

    def resign(self, who: Identity, incarnation: int) -> Call:
        """End one's own life, so that the index is free at once."""
        args = [who.pod, incarnation, Life.RESIGNED.value, "", ""]
        return script_call("end_life", self._table(who.service), args)

    def set_state(self, service: str, pod: PodRecord, state: RoutingState, router: int) -> Call:
        """Set a pod's routing state; nothing takes back SHUTDOWN.

        Replies "ok", "gone", "superseded", "absent" or "deposed".
        """
        args = [pod.pod, pod.incarnation, state.value, router]
        return script_call("set_state", self._table(service), args)

    def vouch(self, address: Address, seq: int, router: int) -> Call:
        """Write that a life serves again after a lapse, if the renewal of that number is there.

        Replies "ok", "deposed", "ended", "superseded" or "lost".
        """
        service, pod, incarnation = address
        return script_call("vouch", self._table(service), [pod, incarnation, seq, router])

    def _table(self, service: str) -> list[str]:
        return [self.keys.pods(service), self.keys.meta]

    def restore(self, service: str, pod: PodRecord, router: int) -> Call:
        """Write back what Redis may have lost of a pod.

        Replies "written", "known" or "deposed".
        """
        facts = [pod.life.value, pod.state.value, repr(pod.load), pod.heartbeat_us]
        whose = [service, pod.process, pod.node, pod.actor]
        args = [pod.pod, pod.incarnation, *facts, *whose, pod.seq, router]
        keys = [self.keys.pods(service), self.keys.services, self.keys.meta]
        return script_call("restore_pod", keys, args)

    def table(self, service: str) -> Call:
        """Read all records of a service."""
        return plain_call("HGETALL", self.keys.pods(service))

    def services(self) -> Call:
        """Read the names of all services."""
        return plain_call("SMEMBERS", self.keys.services)


def parse_table(reply: list[bytes] | dict[bytes, bytes]) -> list[PodRecord]:
    """Read the reply of `PodCalls.table`."""
    flat = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    rows: dict[int, dict[str, str]] = {}
    for field, value in flat.items():
        pod, _, attribute = field.decode().partition(":")
        rows.setdefault(int(pod), {})[attribute] = value.decode()
    records = [_record(pod, row) for pod, row in sorted(rows.items())]
    return [record for record in records if record is not None]


def _record(pod: int, row: dict[str, str]) -> PodRecord | None:
    try:
        return _parsed(pod, row)
    except (KeyError, ValueError):
        # One that nobody can read must not hide the others.
        logger.exception("the record of pod %d is unreadable: %s", pod, row)
        return None


def _parsed(pod: int, row: dict[str, str]) -> PodRecord:
    return PodRecord(
        pod=pod,
        incarnation=int(row["incarnation"]),
        state=RoutingState(row["state"]),
        life=Life(row["life"]),
        load=float(row["load"]),
        node=row["node"],
        process=row["process"],
        actor=row["actor"],
        heartbeat_us=int(row["heartbeat"]),
        seq=int(row.get("seq", 0)),
        lapsed=row.get("lapsed") == "1",
    )
