"""A plan in words: the rows of its tables, for terminals and for deploy/scaling.md. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pipeline.ops.measured import Measured
from pipeline.ops.sizing import Load, Plan

PART_HEADS = ("What", "How many", "Memory of each", "In use", "Full at")
CEILING_HEADS = ("More processes don't help", "From", "Then")
FACT_HEADS = ("And", "")
NAMES = {
    "connectors": "connector processes",
    "brokers": "Kafka brokers",
    "workers": "worker processes",
    "embedders": "embedding processes",
    "redis": "Redis nodes",
    "replicas": "serving replicas",
}
FAR = 1e6


def tables(plan: Plan) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """(heads, rows) of each, in the order of reading."""
    return [
        (PART_HEADS, part_rows(plan)),
        (FACT_HEADS, fact_rows(plan)),
        (CEILING_HEADS, ceiling_rows(plan)),
    ]


def markdown(plan: Plan, measured: Measured) -> str:
    """The same for a page."""
    lines = [f"**{load_line(plan.load)}**", ""]
    for heads, rows in tables(plan):
        lines += [_cells(heads), _cells(["---"] * len(heads)), *map(_cells, rows), ""]
    lines += [verdict(plan), ""]
    lines += [f"- {note}" for note in plan.notes]
    return "\n".join([*lines, *(f"- {line}" for line in origin_lines(measured)), ""])


def part_rows(plan: Plan) -> list[tuple[str, ...]]:
    """As PART_HEADS; parts that the load asks nothing of are left out."""
    load = plan.load
    return [
        (NAMES[one.name], f"{one.count:,}", size(one.each_bytes), percent(one.share), reach(one.full_at, load))
        for one in plan.parts
        if one.count
    ]


def ceiling_rows(plan: Plan) -> list[tuple[str, ...]]:
    """As CEILING_HEADS, the nearest first."""
    return [(ceiling.name, reach(ceiling.at, plan.load), ceiling.then) for ceiling in plan.ceilings]


def fact_rows(plan: Plan) -> list[tuple[str, ...]]:
    """As FACT_HEADS."""
    return list(_facts(plan))


def verdict(plan: Plan) -> str:
    """What breaks first, and at what load."""
    over = [f"{one.name} carries {_share(one.at)} of it ({one.then})" for one in plan.ceilings if one.at < 1]
    if over:
        return f"This load is too much, whatever is added: {'; '.join(over)}."
    part, ceiling = plan.first_full, plan.first_ceiling
    full = f"Of this plan the {NAMES[part.name]} are full first, at {_whole(part.full_at, plan.load)}."
    if math.isinf(ceiling.at):
        return f"{full} More of them helps as far as the model sees."
    limit = f"{ceiling.name}, at {_whole(ceiling.at, plan.load)}; then {ceiling.then}."
    return f"{full} The first limit that more processes don't mend: {limit}"


def load_line(load: Load) -> str:
    """What the plan is for, in one line."""
    told = [f"{load.events_per_s:,.0f} events/s into {load.bundles:,} bundles of {size(load.bundle_bytes)}"]
    if load.embedded_share:
        told.append(f"{load.embedded_share:.0%} of them embedded in {load.dimension} dimensions")
    told.append(f"{load.lookups_per_s:,.0f} lookups/s")
    if load.searches_per_s:
        told.append(f"{load.searches_per_s:,.0f} searches/s")
    return ", ".join(told)


def origin_lines(measured: Measured) -> list[str]:
    """Where the figures are from."""
    by_date: dict[str, list[str]] = {}
    for name, date in measured.sources.items():
        by_date.setdefault(date, []).append(name)
    files = "; ".join(f"{', '.join(names)} of {date}" for date, names in sorted(by_date.items()))
    origin = f"Measured on {measured.environment}: {files}."
    return [origin, "On other machines, measure: ctxpipe bench, then --figures."]


def reach(at: float, load: Load) -> str:
    """A multiple of the load, with what that is."""
    return _far(at) or f"{_times(at)} ({at * load.events_per_s:,.0f} events/s)"


def size(number_bytes: float) -> str:
    """3.2 GiB."""
    for unit, bytes_ in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number_bytes >= bytes_:
            value = number_bytes / bytes_
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{number_bytes:,.0f} B"


def count(value: float) -> str:
    """3.4 million."""
    for word, number in (("thousand million", 1e9), ("million", 1e6)):
        if value >= number:
            return f"{value / number:.3g} {word}"
    return f"{value:,.0f}"


def percent(share: float) -> str:
    return "under 1%" if 0 < share < 0.01 else f"{share:.0%}"


def duration(seconds: float) -> str:
    """The two greatest units."""
    if math.isinf(seconds):
        return "never: it has nothing left over"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _facts(plan: Plan) -> Iterator[tuple[str, str]]:
    load, times = plan.load, plan.times
    yield "partitions of each topic", f"{plan.partitions}"
    nodes = "one node" if plan.redis_shards == 1 else f"Redis Cluster, {plan.redis_shards} shards"
    yield "Redis holds", f"{size(plan.redis_bytes)} while a new version is built beside; {nodes}, each with a replica"
    if plan.vector_bytes:
        yield "vectors in every replica", size(plan.vector_bytes)
    yield "Kafka's disks, all brokers", f"{size(plan.kafka_bytes)}, {load.replication} copies"
    yield "into Kafka", f"{plan.kafka_bytes_per_s / 1e6:,.1f} MB/s, once"
    yield "caught up after 10 min of outage", duration(times.catch_up_s)
    yield "all rows read anew", duration(times.fill_s)
    if times.embedding_s:
        yield "all texts embedded anew", duration(times.embedding_s)


def _whole(at: float, load: Load) -> str:
    far = _far(at)
    return far or f"{_times(at)} this load ({at * load.events_per_s:,.0f} events/s, {count(at * load.bundles)} bundles)"


def _far(at: float) -> str:
    """For what nobody reaches; empty else."""
    return "never" if math.isinf(at) else "over a million times this load" if at > FAR else ""


def _times(at: float) -> str:
    return f"{at:,.0f} ×" if at >= 100 else f"{at:.2g} ×" if at < 10 else f"{at:.0f} ×"


def _share(at: float) -> str:
    return "nothing" if at <= 0 else f"{at:.0%}"


def _cells(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"
