"""`ctxpipe bench`: measurements, each beside a bare tool in the same run, because machines differ and are noisy."""

from __future__ import annotations

from types import MappingProxyType

import click

from pipeline.commands._lazy import LazyGroup

BENCHES = MappingProxyType(
    {
        "transport": "Records per second into an agent: stock Faust, ours, bare aiokafka.",
        "capture": "Rows per second and latency from Postgres, Cassandra or Scylla into Kafka.",
        "apply": "Changes per second through a context with joins and aggregates.",
        "embed": "Texts per second of each embedding engine, and how near their vectors are to torch's.",
        "search": "Recall and latency of the vector index over real texts while they change, and its memory.",
        "freshness": "Time from a commit in Postgres to the bundle readable in Redis.",
        "lookup": "Answers per second and their times, beside bare tools and Feast, while bundles change.",
        "lag": "What the collector costs: processor time per sample of many partitions that all lag.",
        "read-your-writes": "Lookups with the position of a write: none that is called fresh may lack it.",
    }
)


class Benches(LazyGroup):
    lines, prefix, heading = BENCHES, "pipeline.commands.bench_", "Benchmarks"


@click.group(cls=Benches)
def command() -> None:
    """Measure, and compare with bare tools in the same run."""
