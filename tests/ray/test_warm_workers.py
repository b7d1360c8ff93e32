"""The workers of the tests' Ray are forks, and for all else as Ray's own."""

from __future__ import annotations

from pathlib import Path

import ray


@ray.remote(num_cpus=0)
class Told:
    def of_itself(self) -> tuple[str, str, int]:
        status = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        forker = Path(f"/proc/{status[1]}/cmdline").read_text()
        return ray.WorkerID.from_random().hex(), forker, int(status[2])

    def pid(self) -> int:
        return int(Path("/proc/self").readlink().name)


def test_each_draws_ids_of_its_own_and_leads_its_process_group(ray_session: None) -> None:
    actors = [Told.remote() for _ in range(2)]  # type: ignore[attr-defined]
    told = ray.get([actor.of_itself.remote() for actor in actors])
    assert all("warm_worker.py" in forker for _, forker, _ in told), told
    assert len({drawn for drawn, _, _ in told}) == 2, "what one sends would be taken for another's"
    assert [group for _, _, group in told] == ray.get([actor.pid.remote() for actor in actors])
    for actor in actors:
        ray.kill(actor)
