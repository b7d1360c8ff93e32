"""The stories that the architecture page tells in pictures: who says what to whom, in order."""
# ruff: noqa: INP001 - data beside the pages, and no package

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chapter:
    """The beginning of a part of a story."""

    title: str


@dataclass(frozen=True)
class Message:
    """What one party sends to another; an answer is dashed."""

    source: str
    target: str
    text: str
    answer: bool = False


@dataclass(frozen=True)
class Note:
    """What a party does by itself."""

    party: str
    text: str


Step = Chapter | Message | Note

CLIENT, ROUTER, REDIS = "Client process", "Router", "Redis"
OLD, NEW, PODS = "Pod 3", "Pod 1", "Pods"
CONTROLLER, OLDS, NEWS = "Controller", "Old pods", "New pods"

CALL: tuple[Step, ...] = (
    Chapter("Hit: the process knows the link"),
    Note(CLIENT, "near cache: the lease runs, and the change stream is heard"),
    Message(CLIENT, OLD, "call: uid, epoch, incarnation, method"),
    Note(OLD, "gate: own lease alive, uid held under this epoch"),
    Message(OLD, CLIENT, "result", answer=True),
    Chapter("New uid: neither the process nor Redis has a link"),
    Message(CLIENT, ROUTER, "compute: all new uids of this moment"),
    Note(ROUTER, "not in its cache: the placer chooses a pod"),
    Message(ROUTER, REDIS, "set_if_absent.lua, one script for each shard"),
    Message(REDIS, ROUTER, "the link that holds, and its epoch", answer=True),
    Message(ROUTER, CLIENT, "link, with what is left of its lease", answer=True),
    Chapter("Admission: the uid's first call at this pod"),
    Message(CLIENT, OLD, "call"),
    Message(OLD, REDIS, "read.lua: whose is the uid?"),
    Message(REDIS, OLD, "this pod's, under this epoch", answer=True),
    Note(OLD, "on_acquire(uid), the method, then: does it still own the uid?"),
    Message(OLD, CLIENT, "result", answer=True),
    Chapter("Refusal: the uid has moved meanwhile"),
    Message(CLIENT, OLD, "call, under the old epoch"),
    Message(OLD, CLIENT, "refused: it has not run", answer=True),
    Note(CLIENT, "drops the link"),
    Message(CLIENT, ROUTER, "compute: an epoch above that one"),
    Message(ROUTER, CLIENT, "the link to pod 1", answer=True),
    Message(CLIENT, NEW, "call, under the new epoch"),
    Message(NEW, CLIENT, "result", answer=True),
)

DEATH: tuple[Step, ...] = (
    Chapter("Its process has ended"),
    Message(CLIENT, ROUTER, "report_failure: a call did not arrive"),
    Note(ROUTER, "looks at the process table of the pod's node"),
    Message(ROUTER, REDIS, "end_life.lua: gone"),
    Chapter("Or it is silent: frozen, cut off, its node lost"),
    Note(OLD, "0.9 of its lease without a renewal: it refuses every call"),
    Message(ROUTER, REDIS, "reads all pod tables, once per heartbeat"),
    Note(ROUTER, "the same heartbeat for a whole lease, while Redis answered"),
    Message(ROUTER, REDIS, "end_life.lua: gone, if that heartbeat still stands"),
    Chapter("Everybody hears of it"),
    Message(ROUTER, REDIS, "change stream: pod 3 is gone"),
    Message(REDIS, CLIENT, "change reader: its links are misses from now on", answer=True),
    Chapter("Each of its uids moves at its next touch"),
    Message(CLIENT, ROUTER, "compute: the uid"),
    Note(ROUTER, "the new life of index 3 if it is there, else a pod by the placer"),
    Message(ROUTER, REDIS, "relink.lua: if the epoch is still the dead pod's"),
    Message(REDIS, ROUTER, "a new epoch", answer=True),
    Message(ROUTER, CLIENT, "the link to pod 1", answer=True),
    Message(CLIENT, NEW, "call"),
    Note(NEW, "on_acquire(uid): with empty memory"),
    Message(NEW, CLIENT, "result", answer=True),
)

LOSS: tuple[Step, ...] = (
    Chapter("Writes are lost: Redis restarted empty, or a lagging replica took over"),
    Message(CLIENT, REDIS, "a script, with the highest counter that the caller has seen"),
    Message(REDIS, CLIENT, "lost: its own counter is lower. It has changed nothing", answer=True),
    Message(CLIENT, ROUTER, "recover, and wait"),
    Note(ROUTER, "compares all counters, as it does once per heartbeat too"),
    Chapter("Recovery, step by step"),
    Message(ROUTER, REDIS, "1. options and pod tables; until 5., no index can be claimed"),
    Note(ROUTER, "counts every pod's silence anew"),
    Message(ROUTER, PODS, "2. Recall: what do you hold in these shards?"),
    Message(PODS, ROUTER, "uids, epochs, counters", answer=True),
    Note(ROUTER, "waits for each living pod; of each uid the highest epoch wins"),
    Message(ROUTER, REDIS, "3. restore.lua: the links of a shard"),
    Message(ROUTER, REDIS, "4. with the last of them, the shard's counter"),
    Message(ROUTER, REDIS, "5. seal.lua: the namespace, and which servers these are"),
    Chapter("All go on"),
    Message(ROUTER, CLIENT, "recovered", answer=True),
    Message(CLIENT, REDIS, "the same script again"),
    Message(REDIS, CLIENT, "ok", answer=True),
)

DRAIN: tuple[Step, ...] = (
    Chapter("No new uids: somebody has asked for a drain, or the pod's node is leaving"),
    Note(ROUTER, "looks for another READY pod first: without one nothing is taken"),
    Message(ROUTER, REDIS, "set_state.lua: pod 3 is DENY_NEW"),
    Message(ROUTER, OLD, "Show: what do you hold?"),
    Message(OLD, ROUTER, "uids and their epochs", answer=True),
    Chapter("Each uid, as soon as no call of it runs; until then it is served"),
    Message(ROUTER, OLD, "Release, for pod 1 to have it"),
    Note(OLD, "refuses the uid, runs on_release(uid), keeps the state aside"),
    Message(OLD, ROUTER, "it is nobody's now", answer=True),
    Message(ROUTER, NEW, "Take"),
    Message(NEW, OLD, "fetches the state"),
    Message(OLD, NEW, "one pickle", answer=True),
    Note(NEW, "has read it into its own memory"),
    Message(NEW, ROUTER, "taken", answer=True),
    Message(ROUTER, REDIS, "hand_over.lua: if the epoch is still that one"),
    Message(REDIS, ROUTER, "a new epoch, which replaced it", answer=True),
    Note(NEW, "on_acquire(uid, state)"),
    Message(ROUTER, OLD, "Settled: it drops its copy"),
    Chapter("A caller who did not know"),
    Message(CLIENT, OLD, "call, under the old epoch"),
    Message(OLD, CLIENT, "refused: it has not run", answer=True),
    Message(CLIENT, ROUTER, "compute: an epoch above that one"),
    Message(ROUTER, CLIENT, "the link to pod 1", answer=True),
    Message(CLIENT, NEW, "call: it sees the state"),
    Message(NEW, CLIENT, "result", answer=True),
    Chapter("The pod is empty"),
    Message(ROUTER, OLD, "Close: whoever slipped in moves, too"),
    Message(ROUTER, REDIS, "set_state.lua: pod 3 is SHUTDOWN"),
)

UPGRADE: tuple[Step, ...] = (
    Chapter("Wanted: another class"),
    Message(CLIENT, CONTROLLER, "upgrade(NewClass)"),
    Message(CONTROLLER, REDIS, "want.lua: generation 2, of as many pods"),
    Note(CONTROLLER, "what is wanted outlives it and whoever has asked"),
    Chapter("New pods beside the old ones"),
    Message(CONTROLLER, NEWS, "makes as many as there is room for"),
    Message(NEWS, REDIS, "claim.lua: they are READY"),
    Message(CONTROLLER, OLDS, "closed to new uids, by the router"),
    Chapter("One old pod after the other is drained and ended"),
    Message(CONTROLLER, OLDS, "drain, by the router"),
    Message(OLDS, NEWS, "each uid moves once, with its state: only new pods are READY"),
    Note(NEWS, "the new class takes over what the old one knew"),
    Note(CONTROLLER, "ends the empty pod, and makes what is still missing"),
    Chapter("Or something stops it: a new pod does not start, a state can't be read"),
    Message(CONTROLLER, REDIS, "want.lua: generation 1 again, and the way back"),
    Message(CONTROLLER, OLDS, "open to new uids again"),
    Message(NEWS, OLDS, "who has moved goes back, with the state"),
    Message(CONTROLLER, CLIENT, "UpgradeError: why, and that it is undone", answer=True),
    Chapter("Or it is done"),
    Message(CONTROLLER, REDIS, "want.lua: generation 2 alone"),
    Message(CONTROLLER, CLIENT, "done", answer=True),
)

STORIES: dict[str, tuple[str, tuple[str, ...], tuple[Step, ...]]] = {
    "call": ("The life of a call", (CLIENT, ROUTER, REDIS, OLD, NEW), CALL),
    "death": ("The death of a pod", (CLIENT, ROUTER, REDIS, OLD, NEW), DEATH),
    "drain": ("The drain of a pod", (CLIENT, ROUTER, REDIS, OLD, NEW), DRAIN),
    "upgrade": ("An upgrade", (CLIENT, CONTROLLER, REDIS, OLDS, NEWS), UPGRADE),
    "loss": ("A loss of Redis", (CLIENT, ROUTER, REDIS, PODS), LOSS),
}
