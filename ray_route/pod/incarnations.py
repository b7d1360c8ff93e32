"""What serves a pod's uids, through all incarnations of one agent."""

from __future__ import annotations

from ray_route.clock import Deadline
from ray_route.pod import closing, terms
from ray_route.pod.arrivals import Arrivals, FindPeer
from ray_route.pod.command_loop import CommandLoop
from ray_route.pod.gate import Gate
from ray_route.pod.holdings import Holdings
from ray_route.pod.hooks import Hooks
from ray_route.pod.peers import ActorPeer
from ray_route.pod.pod_lease import PodLease
from ray_route.pod.release import Releases
from ray_route.pod.releaser import Releaser
from ray_route.pod.surroundings import Surroundings
from ray_route.protocol.commands import Address
from ray_route.runtime.metrics import meter

# A temporary uid that nobody has used for this share of its TTL is given up: early enough that
# its `on_release` has run before its link could end and be another's.
_IDLE_SHARE = 2 / 3


class Incarnations:
    """One process has one of each: holdings, gate, releaser; each incarnation its commands.

    So nothing of an incarnation begins beside what runs of the one before.
    """

    def __init__(
        self,
        namespace: Surroundings,
        service: str,
        pod: int,
        lease: PodLease,
        hooks: Hooks,
        find_peer: FindPeer = ActorPeer,
    ) -> None:
        self._namespace = namespace
        self._service = service
        hooks.measure(meter(namespace.name), service, pod)
        idle_s = hooks.idle_s or namespace.config.ttl_s * _IDLE_SHARE
        self.held = Holdings(pod, lease, idle_s)
        self.gate = Gate(namespace, service, self.held, hooks)
        self.releases = Releases(self.held)
        self._arrivals = Arrivals(self.held, hooks, find_peer)
        self._releaser = Releaser(namespace, self.gate, hooks, self.releases, self._address)
        self.commands = self._commands()

    def _address(self) -> Address:
        return self._service, self.held.pod, self.held.lease.incarnation

    @property
    def address(self) -> Address:
        """Whom the router's commands are for now."""
        return self._address()

    def _commands(self) -> CommandLoop:
        rooms = (self.held, self.releases, self._arrivals)
        return CommandLoop(self._namespace, self._address(), *rooms)

    def begin(self, pod: int, lease: PodLease) -> None:
        """Begin another incarnation: of what the last one held, nothing is saved."""
        self.commands.end()
        terms.begin(self.held, lease, pod)
        self.commands = self._commands()

    def shut(self, deadline: Deadline) -> None:
        """End calls, release every uid and admit nothing more; take all back if time runs out."""
        closing.close(self.held, "the pod is being shut down")
        if not self.held.wait_idle(deadline):
            closing.reopen(self.held)
            deadline.check("the calls that run on this pod")
        if self.release_all(deadline):
            closing.stay(self.held)
            deadline.check("on_release of the uids on this pod")
        closing.shut(self.held, "the pod has been shut down")

    def release_all(self, deadline: Deadline) -> list[str]:
        """Release every uid, with its hook; return those that could not be in time."""
        return self._releaser.release_all(deadline)

    def lose_all(self, deadline: Deadline) -> None:
        """End this incarnation for ever: every uid is told to `on_lost`, as its calls end."""
        self.commands.end()
        terms.lose_all(self.held)
        self._releaser.wait_for_hooks(deadline)

    def end(self) -> None:
        """Stop everything; admit nothing more."""
        self.held.lease.end()
        self.commands.end()
        self._releaser.end()
