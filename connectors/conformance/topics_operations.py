"""The topics kind's tests of a long life: killed, idle, restarted, ended, altered under way, with large rows."""

from __future__ import annotations

import asyncio
from typing import Any

from connectors.conformance.deployed import Deployed
from connectors.conformance.harness import Altering, Restarting, Switching, needs
from connectors.conformance.limits import Limits
from connectors.conformance.topics import is_beat
from connectors.conformance.topics_harness import Beating, Killable, Stoppable
from connectors.conformance.waiting import eventually

IDLE_S = 1.5


class TopicOperationTests:
    """Whatever ends a process of it, nothing is lost, and nothing is left behind by what we started."""

    @needs(Killable)
    async def test_kill_9_loses_nothing(self, deployed: Deployed, harness: Any) -> None:
        """Not one change in between, not only the newest of each row. Repeats are allowed."""
        await deployed.started()
        step = 0
        async with deployed.writing() as written:
            while True:
                seen = len(written)
                await deployed.until(lambda seen=seen: len(written) > seen + 20, "some writes before it")  # type: ignore[misc]
                if not await harness.kill(step):
                    break
                step += 1
                marker = written[-1]
                await deployed.until(lambda marker=marker: marker in deployed.values_of_first(), "it goes on")  # type: ignore[misc]
        await deployed.until_equal()
        assert step, "nothing was killed"
        missing = set(written) - set(deployed.values_of_first())
        assert not missing, "changes that never came"
        events = deployed.events()
        assert deployed.folded(events + events) == await deployed.rows()

    async def test_an_idle_deployment_goes_on(self, deployed: Deployed) -> None:
        """It makes up no changes meanwhile, and tells the next one."""
        await deployed.started()
        before = len(deployed.writes())
        await asyncio.sleep(IDLE_S)
        await deployed.poll()
        assert len(deployed.writes()) == before, "changes that nobody made"
        await deployed.write({1: "after a while"})
        await deployed.until_equal()

    @needs(Beating)
    async def test_an_idle_deployment_says_that_time_goes_by(self, deployed: Deployed, harness: Any) -> None:
        """In every partition: each of them has readers of its own, and they need to know that nothing is missing."""
        await deployed.started()
        for _beat in range(2):
            seen = len(deployed.told)
            wanted = set(range(deployed.log.partitions))

            def beaten(seen: int = seen, wanted: set[int] = wanted) -> bool:
                return {one.record.partition for one in deployed.told[seen:] if is_beat(one.event)} == wanted

            async with asyncio.timeout(harness.beat_within_s() + Limits.patience_s):
                await deployed.until(beaten, "a heartbeat in every partition")

    @needs(Stoppable)
    async def test_ended_while_idle_it_leaves_no_process(
        self, deployed: Deployed, harness: Any, conformance_stop_timeout_s: float
    ) -> None:
        await deployed.started()
        assert harness.processes(), "nothing runs"
        async with asyncio.timeout(conformance_stop_timeout_s):
            await harness.stop()
        await eventually(harness.processes, lambda left: not left, timeout_s=0.5, what="processes that are left")
        await deployed.write({1: "while nothing runs"})
        await harness.start()
        await deployed.until_equal()

    @needs(Restarting)
    async def test_a_restarted_server_is_found_again(self, deployed: Deployed, harness: Any) -> None:
        await deployed.started()
        await deployed.write({20: "on its way"})
        await harness.restart()
        await deployed.write({1: "after"})
        await deployed.until_equal()

    @needs(Altering)
    async def test_a_table_may_change_under_way(self, deployed: Deployed, harness: Any) -> None:
        await deployed.write({1: "before"})
        await deployed.start()
        await deployed.until_equal()
        step = 0
        while await harness.alter(step):
            await deployed.write({1: f"after step {step}", 2: "rows untouched since keep their old shape"})
            await deployed.write({2: f"after step {step}"})
            await deployed.until_equal()
            step += 1
        assert step, "no step at all"

    @needs(Switching)
    async def test_a_log_that_moves_is_followed(self, deployed: Deployed, harness: Any) -> None:
        await deployed.started()
        for number in range(2):
            await deployed.write({1: f"before {number}"})
            await harness.switch()
            await deployed.write({1: f"after {number}", 10 + number: "new"})
            await deployed.until_equal()

    async def test_a_large_row(self, deployed: Deployed) -> None:
        """10 MB, or the limit that the harness declares."""
        size = deployed.harness.row_bytes_max
        await deployed.write({1: "a" * size})
        await deployed.start()
        await deployed.until_equal()
        await deployed.write({2: "b" * size, 3: "small"})
        await deployed.until_equal()
