"""The pod table in Redis: builds the calls and reads the replies. Nothing here does I/O."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ray_route.errors import DamagedKeyError
from ray_route.model import MAX_POD, Life, PodRecord, RoutingState, is_name
from ray_route.store.damage import is_number, shown, tell
from ray_route.store.keys import Keys
from ray_route.store.scripts import Call, plain_call, script_call

if TYPE_CHECKING:
    from ray_route.protocol.commands import Address


class Identity(NamedTuple):
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


class Table(NamedTuple):
    """A service's pod table as read: the records, and what is damaged in it.

    `damaged` maps a pod's index, or a field that belongs to none, to what is wrong with it.
    """

    records: list[PodRecord]
    damaged: dict[int | str, str]


def parse_table(reply: list[bytes] | dict[bytes, bytes], key: str = "") -> list[PodRecord]:
    """Read the reply of `PodCalls.table`; what is damaged is logged, with the table's key."""
    table = read_table(reply)
    for where, reason in table.damaged.items():
        tell(damaged_field(key, where, reason))
    return table.records


def read_table(reply: list[bytes] | dict[bytes, bytes]) -> Table:
    """Read the reply of `PodCalls.table`: a record that is damaged must not hide the others."""
    flat = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    rows: dict[int, dict[str, str]] = {}
    damaged: dict[int | str, str] = {}
    for field, value in flat.items():
        pod, _, attribute = field.partition(b":")
        if is_number(pod) and int(pod) <= MAX_POD and pod == b"%d" % int(pod):
            rows.setdefault(int(pod), {})[attribute.decode(errors="replace")] = _text(value)
        else:
            damaged[_text(field)] = "a field that is no pod's"
    records = []
    for pod_index, row in sorted(rows.items()):
        try:
            records.append(_record(pod_index, row))
        except (KeyError, ValueError) as error:
            damaged[pod_index] = _problem(error)
    return Table(records, damaged)


def is_part(field: bytes, where: int | str) -> bool:
    """True if a field belongs to what is damaged."""
    return field.startswith(b"%d:" % where) if isinstance(where, int) else _text(field) == where


def damaged_field(key: str, where: int | str, reason: str) -> DamagedKeyError:
    """Make the error of a part of a pod table."""
    if isinstance(where, int):
        return DamagedKeyError(key=key, reason=f"a record with {reason}", pod=where)
    return DamagedKeyError(key=key, reason=f"{where!r}, {reason}")


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _problem(error: Exception) -> str:
    return f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)


def _record(pod: int, row: dict[str, str]) -> PodRecord:
    """Read a pod's attributes; raise `KeyError` for one that is missing, else `ValueError`."""
    return PodRecord(
        pod=pod,
        incarnation=_whole(row, "incarnation"),
        state=RoutingState(row["state"]),
        life=Life(row["life"]),
        load=_load(row["load"]),
        node=row["node"],
        process=row["process"],
        actor=row["actor"],
        heartbeat_us=_whole(row, "heartbeat"),
        seq=_whole(row, "seq") if "seq" in row else 0,
        lapsed=row.get("lapsed") == "1",
    )


def _whole(row: dict[str, str], attribute: str) -> int:
    text = row[attribute]
    if not is_number(text.encode()):
        raise ValueError(f"{shown(text.encode())} as {attribute}")
    return int(text)


def _load(text: str) -> float:
    """Read a load; one that no pod reports is that of an empty pod, until the next heartbeat."""
    try:
        load = float(text)
    except ValueError:
        return 0.0
    return load if math.isfinite(load) and load >= 0 else 0.0


def service_names(reply: Iterable[bytes], key: str = "") -> list[str]:
    """Read the reply of `PodCalls.services`, in order; what is no name is logged."""
    names = []
    for member in reply:
        name = _text(member)
        if is_name(name):
            names.append(name)
        else:
            tell(DamagedKeyError(key=key, reason=f"{shown(member)} instead of a service's name"))
    return sorted(names)
