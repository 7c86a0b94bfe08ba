"""`ctxpipe bench`: measurements, each beside a bare tool in the same run, because machines differ and are noisy."""

from __future__ import annotations

import importlib
import importlib.util
from types import MappingProxyType

import click

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


class LazyBenches(click.Group):
    """Imports the module of a benchmark only when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in BENCHES if importlib.util.find_spec(_module(name)) is not None]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(_module(cmd_name)).command
        assert isinstance(command, click.Command), f"{_module(cmd_name)}.command is not a click command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Benchmarks"):
            formatter.write_dl([(name, BENCHES[name]) for name in self.list_commands(ctx)])


@click.group(cls=LazyBenches)
def command() -> None:
    """Measure, and compare with bare tools in the same run."""


def _module(name: str) -> str:
    return f"pipeline.commands.bench_{name.replace('-', '_')}"
