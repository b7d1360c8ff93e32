"""Questions to the router about many uids, and the way back of its answers."""

from __future__ import annotations

from functools import partial
from typing import Any

from ray_route.client.coalescer import Done
from ray_route.protocol.wire import pack_question
from ray_route.runtime.namespace import Namespace


class Questions:
    """Asks the router of a namespace, in the worker's thread; see `Coalescer`."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    def compute(self, service: str, wanted: dict[str, int], done: Done) -> None:
        """Ask for links, to be made where there are none."""
        question = pack_question(service, wanted, self._namespace.node)
        self._when_there(self._namespace.router.compute.remote(question), done)

    def find(self, service: str, wanted: dict[str, int], done: Done) -> None:
        """Ask for links where there are some."""
        question = pack_question(service, wanted)
        self._when_there(self._namespace.router.find.remote(question), done)

    def _when_there(self, ref: Any, done: Done) -> None:
        """Have the worker go on when a reply is there, which Ray says in a thread of its own."""
        put = self._namespace.worker.put
        ref.future().add_done_callback(lambda reply: put(partial(done, reply.result)))
