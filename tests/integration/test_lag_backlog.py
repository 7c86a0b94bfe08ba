"""A backlog whose truth the test knows: seconds of lag and the time to catch up, over build-up and drain (must show
2)."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.ops.lag.model import GroupLag, Report
from pipeline.ops.lag.trend import SHRINKING
from tests.support.lag_world import Consumer, Watch, Writer, collecting, writing
from tests.support.streams import make_topic, new_name

pytestmark = [pytest.mark.servers, pytest.mark.timeout(120)]

BEFORE_S = 30.0
"""So long before its way into Kafka each record was committed at its source: what counts is the source's time."""
PARTITIONS = 2
PACE_STEADY = 0.1


def true_lag_s(at_us: int, commits: list[tuple[int, int, int]], writer: Writer) -> float | None:
    """Age of the oldest of the last applied records of the partitions; None while one has applied nothing."""
    ages = []
    for partition in range(PARTITIONS):
        offsets = [offset for time_us, of, offset in commits if of == partition and time_us <= at_us]
        if not offsets:
            return None
        ages.append((at_us - writer.times_us[partition][max(offsets) - 1]) / 1e6)
    return max(ages)


async def test_seconds_of_lag_and_catch_up_are_true(kafka_bootstrap: str, tmp_path: Path) -> None:
    topic, group = new_name("orders"), new_name("readers")
    await make_topic(kafka_bootstrap, topic, PARTITIONS)
    consumer = Consumer(tmp_path, kafka_bootstrap, topic, group, rate=2_000)
    try:
        async with (
            writing(kafka_bootstrap, topic, PARTITIONS, BEFORE_S) as writer,
            collecting(kafka_bootstrap, group) as collector,
            Watch(collector, group).running() as watch,
        ):
            await writer.write(100)
            await watch.until(lambda one: one.members == 1 and not one.lag_records, "the consumer reads")
            consumer.rate(200)
            await writer.steadily(600, 7.0)
            built = len(watch.reports)
            consumer.rate(400)
            await watch.until(lambda one: not one.lag_records, "everything is done", 40.0)
            reports = list(watch.reports)
    finally:
        consumer.end()
    commits = consumer.committed()
    waiting = [(report, one) for report in reports for one in report.groups if one.group == group and one.lag_records]
    assert_true_seconds(waiting, commits, writer)
    assert built > 10 and max(one.lag_records for _, one in waiting) > 1500
    drain = [(report, one) for report, one in waiting if report in reports[built + 6 :] and one.lag_records >= 100]
    assert_true_catch_up(drain, commits)


def assert_true_seconds(
    waiting: list[tuple[Report, GroupLag]], commits: list[tuple[int, int, int]], writer: Writer
) -> None:
    """Each within 10% or 200 ms, and nearly all known; where the consumer commits while it is looked at, either truth
    counts."""
    errors, unknown = [], 0
    for report, one in waiting:
        truths = [true_lag_s(int(report.at * 1e6) + shift_us, commits, writer) for shift_us in (0, 60_000)]
        if one.lag_s is None:
            unknown += 1
            continue
        known = [truth for truth in truths if truth is not None]
        if known:
            errors.append(min((abs(one.lag_s - truth), max(0.2, truth / 10)) for truth in known))
    assert len(errors) > 20 and unknown <= 1, (len(errors), unknown)
    assert all(error <= limit for error, limit in errors), max(errors)
    print(f"{len(errors)} samples, greatest error {max(errors)[0]:.3f} s")


def assert_true_catch_up(drain: list[tuple[Report, GroupLag]], commits: list[tuple[int, int, int]]) -> None:
    """Each within 25% or 200 ms of what came, as long as the consumer's pace, by its own notes, was what it stayed at:
    a machine that gives it no processor for a second is no fault of the forecast."""
    done_us = max(time_us for time_us, _, _ in commits)
    errors = []
    for report, one in drain:
        left_s = done_us / 1e6 - report.at
        before = done_between(commits, report.at - 2.0, report.at) / 2.0
        after = one.lag_records / left_s
        if abs(before - after) <= PACE_STEADY * after:
            assert one.trend == SHRINKING and one.catch_up_s is not None, (one.trend, one.velocity, one.history)
            errors.append((abs(one.catch_up_s - left_s), max(0.2, left_s / 4)))
    assert len(errors) >= 5, f"the drain was steady long enough to tell: {len(errors)} of {len(drain)}"
    print(f"{len(errors)} forecasts of {len(drain)}, greatest error {max(errors)}")
    assert all(error <= limit for error, limit in errors), errors


def done_between(commits: list[tuple[int, int, int]], from_s: float, to_s: float) -> int:
    """Records that were committed in this time."""

    def done(at_s: float) -> int:
        reached = dict.fromkeys(range(PARTITIONS), 0)
        for time_us, partition, offset in commits:
            if time_us <= at_s * 1e6:
                reached[partition] = max(reached[partition], offset)
        return sum(reached.values())

    return done(to_s) - done(from_s)
