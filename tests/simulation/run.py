"""One simulated run: a random spec, a random source, workers with faults; afterwards the stores must be right."""

from __future__ import annotations

import copy
from collections.abc import Coroutine
from random import Random
from typing import Any

from pipeline.core.errors import Retryable
from pipeline.flow import Flow, FlowLimits
from pipeline.merging import Merging
from pipeline.plan import Plan, compile_plan
from schemas.bundle import UnitKey
from tests.simulation.compare import differences
from tests.simulation.specs import random_spec
from tests.simulation.wide import STEP_US, WideSource
from tests.simulation.world import PARTITIONS, Crash, Faults, FaultyStore, Memory, Pause, Source

_STEPS_MAX = 200_000
Partition = tuple[str, int]


class Simulation:
    """Workers share partitions; each partition has one current owner, and owners that lost it may still be running."""

    def __init__(self, seed: int, compose: str | None = None, wide: bool = False) -> None:
        """`wide`: the tables are wide-column ones, written cell by cell."""
        self.random = Random(seed)
        self.spec = random_spec(self.random, compose)
        self.plan: Plan = compile_plan(self.spec)
        # The source draws from its own sequence, so that one seed gives the same tables whatever happens elsewhere.
        self.source = WideSource(Random(-1 - seed)) if wide else Source(Random(-1 - seed))
        self.memory, self.faults = Memory(), Faults(self.random)
        self.limits = FlowLimits(
            parent_children_max=self.random.choice([1, 3, 1000]),
            chunk_keys=2,
            assembly_keys=5,
            foresight_keys=self.random.choice([0, 1, 5]),
        )
        self.in_order = self.random.random() < 0.5
        self.running: list[tuple[Partition, Coroutine[Any, Any, Any]]] = []
        self.owned: set[Partition] = set()
        self.positions: dict[Partition, int] = {}
        self.done: dict[Partition, int] = {}
        self.lane: list[list[UnitKey]] = []
        self.lane_done = 0
        self.remembered: Memory | None = None

    def run(self) -> list[str]:
        """Empty when the stores converged; otherwise what differs."""
        for _ in range(self.source.random.randint(5, 25)):
            self.source.transaction()
            if self.source.random.random() < 0.05:
                self.source.duplicate()
            self._drive(self.random.randint(0, 60))
            self._disturb()
        self.faults.stop()
        for _ in range(_STEPS_MAX):
            self._start_all()
            if self.running:
                self._step()
            elif not self._later():
                break
        else:
            return ["the simulation did not come to rest"]
        return differences(self.spec, self.plan, self.source.tables, self.memory)

    def _drive(self, steps: int) -> None:
        for _ in range(steps):
            self._start_all()
            if self.running:
                self._step()

    def _start_all(self) -> None:
        for table in sorted(self.plan.topics):
            for number in range(PARTITIONS):
                partition = (table, number)
                log = self.source.log.get(partition, [])
                if partition not in self.owned and self._position(partition) < len(log):
                    self.owned.add(partition)
                    self.running.append((partition, self._consume(partition)))
        lane = ("lane", 0)
        if lane not in self.owned and self.lane_done < len(self.lane):
            self.owned.add(lane)
            self.running.append((lane, self._consume_lane()))

        clock = ("clock", 0)
        if isinstance(self.source, WideSource) and clock not in self.owned:
            now_us = self.source.now_us
            if any(time_us <= now_us for time_us in self.memory.cells.expiries.values()):
                self.owned.add(clock)
                self.running.append((clock, self._expire()))

    def _later(self) -> bool:
        """Lets time pass until nothing lives for a time any more; False when there is nothing to wait for."""
        if not isinstance(self.source, WideSource):
            return False
        self.source.settle()
        self.source.now_us += 100 * STEP_US
        return bool(self.memory.cells.expiries)

    async def _expire(self) -> None:
        flow = self._flow()
        while True:
            try:
                self.lane += (await flow.expire(self.random.choice([1, 100]))).fan_out
                return
            except Retryable:
                await Pause()

    def _position(self, partition: Partition) -> int:
        return self.positions.setdefault(partition, self.memory.marks.offsets.get(partition, 0))

    def _flow(self) -> Flow:
        stores = [FaultyStore(s, self.faults) for s in (self.memory.rows, self.memory.relations, self.memory.bundles)]
        merging = None
        if isinstance(self.source, WideSource):
            source = self.source
            merging = Merging(self.plan, FaultyStore(self.memory.cells, self.faults), lambda: source.now_us)
        return Flow(self.plan, stores[0], stores[1], stores[2], self.limits, self._together, self.in_order, merging)

    async def _consume(self, partition: Partition) -> None:
        """What the agent does with one batch: retry outages, then publish the fan-out, then the batch is done."""
        memory, start = self.memory, self._position(partition)
        records = self.source.log[partition][start : start + self.random.choice([1, 2, 5, 50])]
        flow = self._flow()
        while True:
            try:
                report = await flow.process(records)
                break
            except Retryable:
                await Pause()
        if report.dead_letters:
            raise AssertionError(f"dead letters: {report.dead_letters[0].reason}")
        self.lane += report.fan_out
        await Pause()
        if memory is self.memory and self.positions.get(partition) == start:
            self.positions[partition] = start + len(records)
            if self.random.random() < 0.5:
                await memory.marks.write_marks({partition: start + len(records)})

    async def _consume_lane(self) -> None:
        flow, number = self._flow(), self.lane_done
        while number < len(self.lane):
            try:
                await flow.rebuild(self.lane[number])
                break
            except Retryable:
                await Pause()
        self.lane_done = max(self.lane_done, number + 1)

    async def _together(self, *coroutines: Coroutine[Any, Any, Any]) -> list[Any]:
        """No event loop here: one after the other, and the seed alone decides who goes on in between. What was asked
        after a step that failed may be carried out all the same, as by a server that refused the one and took the
        other; or it never arrived."""
        results, failure = [], None
        try:
            for coroutine in coroutines:
                try:
                    results.append(await coroutine)
                except Retryable as error:
                    failure = failure or error
                    if self.random.random() < 0.5:
                        break
        finally:
            for coroutine in coroutines:
                coroutine.close()
        if failure is not None:
            raise failure
        return results

    def _step(self) -> None:
        number = self.random.randrange(len(self.running))
        partition, coroutine = self.running[number]
        try:
            coroutine.send(None)
            return
        except StopIteration:
            self.owned.discard(partition)
        except Crash:
            self._lost(partition)
        del self.running[number]

    def _lost(self, partition: Partition) -> None:
        """The process is gone: whoever comes next starts at the mark."""
        self.owned.discard(partition)
        self.positions.pop(partition, None)

    def _disturb(self) -> None:
        roll = self.random.random()
        if roll < 0.25 and self.owned:
            # A rebalance: another worker starts at the mark while the old one is still at work.
            partition = self.random.choice(sorted(self.owned))
            self._lost(partition)
        elif roll < 0.31:
            self.remembered = copy.deepcopy(self.memory)
        elif roll < 0.36 and self.remembered is not None:
            # Redis comes back as it was a moment ago; its workers notice and go back to its marks.
            self.memory, self.remembered = self.remembered, None
            for _, coroutine in self.running:
                coroutine.close()
            self.running, self.owned, self.positions, self.lane_done = [], set(), {}, 0
