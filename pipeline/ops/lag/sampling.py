"""One look at Kafka per call: groups, commits, then ends (R1: never the other way round), then the records that tell
how old the lag is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import Retryable
from pipeline.ops.lag.commit_times import place_in
from pipeline.ops.lag.judging import Wanted
from pipeline.ops.lag.kafka import EARLIEST, LATEST, Brokers, Cluster
from pipeline.ops.lag.model import GroupSeen, Place, Retention, Sample
from pipeline.stores.store import Partition

PASSES = ((50, 32 * 1024), (8, 1024 * 1024), (1, 1024 * 1024))
"""(partitions of one request, bytes of each): batches that are too big for one come with the next; the last gives any
batch whole."""
CPU_S_MAX = 0.5
"""Processor time for records of one sample; partitions with less lag are unknown beyond it."""
RETENTION_AGE_S = 300.0


class Sampler:
    """`sample`, then `places` and `retentions` of what it showed. All raise Retryable while no broker answers and
    EnvironmentProblem when Kafka refuses us. `records_max`: so many partitions are read per sample."""

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        timeout_s: float = 5.0,
        records_max: int = 1000,
        clock: Clock | None = None,
        **security: Any,
    ) -> None:
        self._brokers = Brokers(bootstrap_servers, timeout_s, **security)
        self._records_max, self._clock = records_max, clock or SystemClock()
        self._cluster = Cluster([], {})
        self._sample: Sample | None = None
        self._places: dict[Wanted, Place] = {}
        self._retentions: dict[str, tuple[float, Retention]] = {}

    async def close(self) -> None:
        await self._brokers.close()

    async def sample(self, has: Callable[[str], bool], topics: Iterable[str] = ()) -> Sample:
        """Of the groups that `has` wants, and the ends of these topics, too."""
        brokers = self._brokers
        brokers.problems = []
        self._cluster = cluster = await brokers.cluster()
        listed = await brokers.groups(cluster.nodes)
        wanted = {node: [name for name in names if has(name)] for node, names in listed.items()}
        seen = await brokers.describe(wanted)
        at_us, at_s = self._clock.now_us(), self._clock.monotonic_s()
        commits = await brokers.commits(wanted)
        groups = {name: _with_commits(seen.get(name, GroupSeen("")), found) for name, found in commits.items()}
        partitions = self._partitions(groups.values(), topics)
        ends = await brokers.offsets(cluster, partitions, LATEST)
        starts = await brokers.offsets(cluster, partitions, EARLIEST)
        if not ends and partitions and brokers.problems:
            raise Retryable(brokers.problems[0])
        complete = set(listed) == set(cluster.nodes)
        self._sample = Sample(at_us, at_s, groups, starts, ends, cluster.topics, tuple(brokers.problems), complete)
        return self._sample

    async def places(self, wanted: Sequence[Wanted]) -> dict[Wanted, Place]:
        """Of these, in their order, as far as the limits go. What was read before is not read again, as long as it
        is asked for every time."""
        kept = {one: self._places[one] for one in wanted if one in self._places and not self._places[one].nothing_waits}
        missing = [one for one in wanted if one not in kept][: self._records_max]
        kept |= await self._read(missing)
        self._places = {one: place for one, place in kept.items() if not place.problem}
        return kept

    async def retentions(self, topics: Iterable[str]) -> dict[str, Retention]:
        """Asked again every few minutes."""
        now_s, asked = self._clock.monotonic_s(), sorted(set(topics))
        old = [t for t in asked if t not in self._retentions or now_s - self._retentions[t][0] > RETENTION_AGE_S]
        for topic, found in (await self._brokers.retentions(self._cluster, old)).items():
            self._retentions[topic] = (now_s, found)
        return {topic: self._retentions[topic][1] for topic in asked if topic in self._retentions}

    async def _read(self, missing: list[Wanted]) -> dict[Wanted, Place]:
        began_s, found = time.process_time(), dict[Wanted, Place]()
        for partitions_max, bytes_max in PASSES:
            left: list[Wanted] = []
            while missing:
                if time.process_time() - began_s > CPU_S_MAX:
                    return found
                chunk, missing = _chunk(missing, partitions_max)
                left += await self._read_chunk(chunk, bytes_max, found)
            missing = left
        return found

    async def _read_chunk(self, chunk: list[Wanted], bytes_max: int, found: dict[Wanted, Place]) -> list[Wanted]:
        """What has to be asked again with more room."""
        sample = self._sample
        assert sample is not None, "places are asked of a sample"
        at = {
            (topic, number): max(offset - 1, sample.starts.get((topic, number), 0)) for topic, number, offset in chunk
        }
        answers = await self._brokers.fetch(self._cluster, at, bytes_max)
        left = []
        for one in chunk:
            topic, number, offset = one
            answer = answers.get((topic, number), "its broker does not answer")
            if isinstance(answer, str):
                found[one] = Place(None, None, problem=f"the record can't be read: {answer}")
                continue
            place = place_in(answer, offset, sample.ends.get((topic, number), 0))
            if place is not None:
                found[one] = place
            else:
                left.append(one)
        return left

    def _partitions(self, groups: Iterable[GroupSeen], topics: Iterable[str]) -> list[Partition]:
        found: set[Partition] = set()
        for group in groups:
            found.update(group.committed or ())
            found.update(group.assigned or ())
        for topic in topics:
            found.update((topic, number) for number in range(self._cluster.topics.get(topic, 0)))
        return sorted(found)


def _chunk(wanted: list[Wanted], partitions_max: int) -> tuple[list[Wanted], list[Wanted]]:
    """(so many, the rest); a partition comes once in a request, groups at different offsets of it one by one."""
    taken: dict[Partition, Wanted] = {}
    rest: list[Wanted] = []
    for one in wanted:
        partition = (one[0], one[1])
        if len(taken) < partitions_max and partition not in taken:
            taken[partition] = one
        else:
            rest.append(one)
    return list(taken.values()), rest


def _with_commits(seen: GroupSeen, found: Mapping[Partition, int] | str) -> GroupSeen:
    if isinstance(found, str):
        return replace(seen, committed=None, problem=found)
    return replace(seen, committed=found)
