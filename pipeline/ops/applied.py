"""Waiting until the pipeline has applied everything that a source had committed at a moment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from pipeline.core.clock import Clock
from pipeline.core.errors import EnvironmentProblem
from pipeline.stores.store import AppliedPosition, Partition

Applied = Mapping[Partition, AppliedPosition]
POLL_S = 0.05
SHOWN_MAX = 3


class Target(NamedTuple):
    """Everything that `source` committed up to `commit_time_us`, in topics of so many partitions (0: not known)."""

    source: str
    commit_time_us: int
    topics: Mapping[str, int]


def behind(applied: Applied, target: Target) -> list[str]:
    """One sentence per topic or partition that has not come so far; heartbeats carry quiet ones along."""
    late = []
    for topic, partitions in target.topics.items():
        known = {partition for name, partition in applied if name == topic}
        for partition in sorted(known | set(range(max(partitions, 1)))):
            position = applied.get((topic, partition))
            if position is None:
                late.append(f"{topic} partition {partition}: nothing applied yet")
            elif position.commit_time_us < target.commit_time_us:
                late_s = (target.commit_time_us - position.commit_time_us) / 1e6
                late.append(f"{topic} partition {partition}: {late_s:.1f} s behind")
    return late


async def wait_until_applied(
    read_applied: Callable[[], Awaitable[Applied]], target: Target, clock: Clock, limit_s: float
) -> None:
    """Raises EnvironmentProblem when it does not arrive within the limit; 0 asks once."""
    deadline_s = clock.monotonic_s() + limit_s
    while late := behind(await read_applied(), target):
        if clock.monotonic_s() >= deadline_s:
            shown = "; ".join(late[:SHOWN_MAX]) + (
                f"; and {len(late) - SHOWN_MAX} more" if len(late) > SHOWN_MAX else ""
            )
            raise EnvironmentProblem(
                f"changes of source {target.source} had not arrived after {limit_s:g} s ({shown}). Check that its "
                "connector (ctxpipe connect) and a worker (ctxpipe worker) run, or give a longer --wait."
            )
        await clock.sleep(POLL_S)
