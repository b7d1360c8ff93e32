"""Users' classes for tests. In a module of their own, so that Ray's workers can import it."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

import ray_route


class Counter:
    """A user's class: state per uid, nothing of ray_route but the hook that it may define."""

    def __init__(self, start: int = 0) -> None:
        self.counts: dict[str, int] = {}
        self.acquired: list[str] = []
        self.start = start

    def on_acquire(self, uid: str) -> None:
        self.acquired.append(uid)
        self.counts[uid] = self.start

    def add(self, uid: str, amount: int = 1) -> int:
        self.counts[uid] += amount
        return self.counts[uid]

    def where(self) -> tuple[int, int]:
        link = ray_route.current_link()
        assert link is not None
        return link.pod, link.epoch

    def pid(self) -> int:
        return os.getpid()

    def acquisitions(self) -> list[str]:
        return self.acquired

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def exit(self) -> None:
        os._exit(1)

    def fail(self, text: str) -> None:
        raise KeyError(text)

    def sys_exit(self) -> None:
        sys.exit(0)

    def interrupt(self) -> None:
        raise KeyboardInterrupt


class Carrier(Counter):
    """Hands its state over by way of a store that all pods share."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf = Path(tempfile.gettempdir()) / "ray_route-carrier"
        self.shelf.mkdir(exist_ok=True)

    def on_acquire(self, uid: str) -> None:
        self.counts[uid] = int(self._place(uid).read_text()) if self._place(uid).exists() else 0

    def on_release(self, uid: str) -> None:
        self._place(uid).write_text(str(self.counts.pop(uid)))

    def _place(self, uid: str) -> Path:
        agent = ray_route.current_agent()
        assert agent is not None
        return self.shelf / f"{agent.namespace}-{agent.service}-{uid}"


class Weighed(Carrier):
    """Its uids have loads of their own."""

    def weigh(self, uid: str, load: float) -> None:
        agent = ray_route.current_agent()
        assert agent is not None
        agent.set_uid_load(uid, load)


class AsyncCounter:
    """The same with coroutines."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.acquired: list[str] = []
        self.met = 0
        self.all_here = asyncio.Event()

    async def on_acquire(self, uid: str) -> None:
        self.acquired.append(uid)
        self.counts[uid] = 0

    async def add(self, uid: str, amount: int = 1) -> int:
        self.counts[uid] += amount
        return self.counts[uid]

    async def acquisitions(self) -> list[str]:
        return self.acquired

    async def pid(self) -> int:
        return os.getpid()

    async def meet(self, number: int) -> int:
        """Return once that many calls are in here together."""
        self.met += 1
        if self.met == number:
            self.all_here.set()
        await asyncio.wait_for(self.all_here.wait(), 10)
        return self.met

    async def sys_exit(self) -> None:
        sys.exit(0)

    async def interrupt(self) -> None:
        await asyncio.sleep(0)
        raise KeyboardInterrupt

    async def interrupt_loop(self) -> None:
        """Have a task of its own end the loop, once this has been answered."""

        async def later() -> None:
            await asyncio.sleep(0.3)
            raise KeyboardInterrupt

        self.task = asyncio.create_task(later())


class ExitsInHook(Counter):
    """Its code ends the process before one uid's first call."""

    def on_acquire(self, uid: str) -> None:
        super().on_acquire(uid)
        if uid == "poison":
            sys.exit(0)


class ExitsInAsyncHook(AsyncCounter):
    """The same with coroutines."""

    async def on_acquire(self, uid: str) -> None:
        await super().on_acquire(uid)
        if uid == "poison":
            raise KeyboardInterrupt


class FailsToRestart(Counter):
    """Its constructor fails a few times after the first; a file counts."""

    def __init__(self, starts: str, failures: int) -> None:
        super().__init__()
        with Path(starts).open("a") as noted:
            noted.write(".")
        if 2 <= len(Path(starts).read_text()) < 2 + failures:
            raise RuntimeError("not yet")


class Gated(Counter):
    """Its constructor says that it runs, and in which process, and waits to be let go on."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        with (Path(folder) / "made").open("a") as made:
            made.write(f"{os.getpid()}\n")
        while not (Path(folder) / "go").exists():
            time.sleep(0.02)


def made_in(folder: Path) -> list[int]:
    """Return in which processes constructors of `Gated` have run, the first one first."""
    made = folder / "made"
    return [int(pid) for pid in made.read_text().split()] if made.exists() else []


class GatedCarrier(Gated, Carrier):
    """Both: it starts when it is let go on, and hands its state over."""


def count_each(client: ray_route.RouteClient, uids: list[str]) -> dict[str, tuple[int, int, int]]:
    """Call every uid of service "svc"; return each one's count, pod and epoch."""
    return {
        uid: (client.call(uid, "svc", "add", uid), *client.call(uid, "svc", "where"))
        for uid in uids
    }


class Other:
    """A client in a process of its own."""

    def __init__(self, namespace: str, url: str) -> None:
        self.client = ray_route.connect(namespace, redis_url=url)

    def count_each(self, uids: list[str]) -> dict[str, tuple[int, int, int]]:
        return count_each(self.client, uids)


def by_last_digit(pods: Any, load: Any, uid: str, node: str | None) -> int:
    """A user's placement."""
    return int(uid[-1]) % 3 if uid[-1].isdigit() else 99


class Waiting(Counter):
    """Calls that last until a file is there, and say by another that they have begun."""

    def wait(self, uid: str, until: str) -> int:
        Path(until).with_suffix(".begun").touch()
        while not Path(until).exists():
            time.sleep(0.02)
        return self.add(uid)


class Bank:
    """Debits, and then fails: in a call of its own, by its own word, or late."""

    def __init__(self) -> None:
        self.debits = 0

    def ask_nobody(self, namespace: str) -> None:
        self.debits += 1
        with ray_route.connect(namespace) as client:
            client.call("bob", "no-such-service", "add", "bob")

    def ask_itself(self, error: Exception) -> None:
        self.debits += 1
        raise error

    def refuse_itself(self) -> None:
        """Say of itself that it does not run, as a call of its own uid may."""
        link = ray_route.current_link()
        assert link is not None
        ids = {"service": link.service, "pod": link.pod, "uid": link.uid, "epoch": link.epoch}
        self.ask_itself(ray_route.FencedError(reason="mine", may_have_run=False, **ids))

    def fail_at(self, gate: str) -> None:
        self.debits += 1
        while not Path(gate).exists():
            time.sleep(0.02)
        raise LookupError("too late for anybody")

    def count(self) -> int:
        return self.debits


class AsyncBank(Bank):
    """The same on an event loop."""

    async def refuse_itself(self) -> None:  # type: ignore[override]
        super().refuse_itself()

    async def fail_at(self, gate: str) -> None:  # type: ignore[override]
        await asyncio.to_thread(super().fail_at, gate)


class Given(Counter):
    """Is given something large."""

    def __init__(self, given: bytes) -> None:
        super().__init__()
        self.given = given

    def size(self) -> int:
        return len(self.given)


class FailsAtWill(Counter):
    """Fails to start while there is a file that says so."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        if (Path(folder) / "fail").exists():
            raise RuntimeError("as told")


class Asks(Counter):
    """Asks another actor."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self.other = other

    def ask(self) -> str:
        answer: str = ray.get(self.other.hello.remote())
        return answer
