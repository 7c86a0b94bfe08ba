"""`ctxpipe plan`: how many of everything a load needs, and what breaks first, by measured figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from pipeline.ops.measured import Measured
    from pipeline.ops.sizing import Load, Plan

SUFFIXES = {"k": 1e3, "M": 1e6, "G": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}


class Asked(NamedTuple):
    """One option: a field of Load, what may stand there, and, as `otherwise` shows it, what is taken without it."""

    field: str
    least: float
    most: float
    help: str
    whole: bool = False
    otherwise: str = ""

    @property
    def flag(self) -> str:
        return f"--{self.field.replace('_', '-')}"


OPTIONS = (
    Asked("events_per_s", 0.001, 100_000_000, "Changes of rows per second, at the busiest time. Needed."),
    Asked("bundles", 1, 10**11, "Bundles of all contexts together. Needed.", whole=True),
    Asked("bundle_bytes", 10, 16_000_000, "Size of a bundle.", True, "2,000"),
    Asked("rows", 1, 10**12, "Rows of the captured tables.", True, "two for each bundle"),
    Asked("row_bytes", 1, 16_000_000, "Size of a row, as JSON.", True, "as measured, 265"),
    Asked("event_bytes", 1, 64_000_000, "Size of a change in Kafka.", True, "as measured, 575"),
    Asked("tables", 1, 10_000, "Captured tables.", True, "5"),
    Asked(
        "fan_out", 0, 1_000_000, "Bundles and linked sections that a change rewrites.", otherwise="as measured, 1.83"
    ),
    Asked("contexts", 1, 1_000, "Contexts that each change is applied in.", True, "1"),
    Asked("sources", 1, 1_000, "Sources (of Cassandra and Scylla: nodes) that share the changes.", True, "1"),
    Asked("lookups_per_s", 0, 100_000_000, "Lookups over HTTP.", otherwise="0"),
    Asked("near_share", 0, 1, "Lookups that the near cache answers.", otherwise="as measured, 0.8"),
    Asked("searches_per_s", 0, 10_000_000, "Searches over HTTP.", otherwise="0"),
    Asked("embedded_share", 0, 1, "Bundles that have a vector.", otherwise="0"),
    Asked("changed_texts_share", 0, 1, "Rewritten bundles whose text changes.", otherwise="as measured, 0.05"),
    Asked("dimension", 2, 65_536, "Dimensions of a vector.", True, "384"),
    Asked("hot_key_share", 0, 1, "Changes that meet the one hottest row.", otherwise="0.01"),
    Asked("utilisation", 0.05, 0.95, "How much of what was measured is planned with.", otherwise="0.5"),
    Asked("replication", 1, 10, "Copies that Kafka keeps.", True, "3"),
    Asked("partitions", 1, 1_000, "Partitions, where the topics exist already.", True, "chosen"),
    Asked("redis_node_bytes", 2**20, 2**44, "Memory of a Redis node.", True, "16GiB"),
    Asked("replica_bytes", 2**20, 2**44, "Memory of a serving replica.", True, "16GiB"),
)


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for asked in reversed(OPTIONS):
        shown = f"{asked.help} [default: {asked.otherwise}]" if asked.otherwise else asked.help
        command = click.option(asked.flag, metavar="NUMBER", help=shown)(command)
    return command


@click.command()
@_options
@click.option(
    "--source", default="postgres", show_default=True, help="Kind of the sources: postgres, scylla, cassandra."
)
@click.option("--engine", default="onnx-int8", show_default=True, help="onnx-int8, onnx-fp32, sentence-transformers.")
@click.option(
    "--figures",
    type=click.Path(path_type=Path),
    help="Figures of your own machines, as the `figures` of --json shows ours.",
)
@click.option("--json", "as_json", is_flag=True, help="A JSON object.")
@click.option("--markdown", is_flag=True, help="Tables for a page, as in deploy/scaling.md.")
def command(source: str, engine: str, figures: Path | None, as_json: bool, markdown: bool, **given: str | None) -> None:
    """Plan for a load: partitions, workers, embedders, Redis, serving replicas, Kafka, and what breaks first.

    A NUMBER may end in k, M, G, KiB, MiB or GiB. The model is a straight line through measured figures, which belong to
    the machine that they name. Exit code 1: the load is over a limit that no further process mends.
    """
    from pipeline.core.errors import ConfigError
    from pipeline.ops import measured as figures_of
    from pipeline.ops import sizing_text
    from pipeline.ops.sizing import plan

    measured = figures_of.load_measured(figures or figures_of.FILE)
    mistakes: list[str] = []
    values = {"source": source, "engine": engine}
    for name, known in (("source", measured.capture_rows_per_s), ("engine", measured.embed_texts_per_s)):
        if values[name] not in known:
            mistakes.append(f"--{name}: {values[name]!r} was not measured; take {', '.join(known)}")
    numbers = _numbers(given, mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    made = plan(load_of({**numbers, **values}, measured), measured)
    if as_json:
        click.echo(_as_json(made, measured))
    elif markdown:
        click.echo(sizing_text.markdown(made, measured), nl=False)
    else:
        _show(made, measured)
    click.get_current_context().exit(0 if made.fits else 1)


def load_of(values: Mapping[str, Any], measured: Measured) -> Load:
    """What is not given is taken as it was measured, or as Load has it."""
    from pipeline.ops.sizing import Load

    taken: dict[str, Any] = {
        "rows": 2 * values["bundles"],
        "row_bytes": measured.row_bytes,
        "event_bytes": measured.event_bytes,
        "fan_out": measured.apply_writes_per_event,
        "near_share": measured.near_share,
        "changed_texts_share": measured.changed_texts_share,
    }
    return Load(**{**taken, **values})


def _numbers(given: Mapping[str, str | None], mistakes: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for asked in OPTIONS:
        text = given.get(asked.field)
        if text is None:
            if not asked.otherwise:
                mistakes.append(f"{asked.flag} is missing, e.g. {asked.flag} 1000")
            continue
        value = _number(text)
        if value is None:
            mistakes.append(f"{asked.flag}: {text!r} is no number; write one like 1500, 0.5, 20k or 4GiB")
        elif not asked.least <= value <= asked.most:
            mistakes.append(f"{asked.flag}: {text} has to be from {asked.least:,} to {asked.most:,}")
        elif asked.whole and value != int(value):
            mistakes.append(f"{asked.flag}: {text} has to be whole")
        else:
            found[asked.field] = int(value) if asked.whole else value
    return found


def _number(text: str) -> float | None:
    suffix = next((one for one in sorted(SUFFIXES, key=len, reverse=True) if text.strip().endswith(one)), "")
    try:
        return float(text.strip().removesuffix(suffix).replace(",", "").replace("_", "")) * SUFFIXES.get(suffix, 1)
    except ValueError:
        return None


def _as_json(plan: Plan, measured: Measured) -> str:
    import json

    import msgspec

    from pipeline.ops.sizing_text import verdict

    parts = [{**msgspec.to_builtins(part), "full_at": part.full_at} for part in plan.parts]
    shown = {**msgspec.to_builtins(plan), "parts": parts, "fits": plan.fits, "verdict": verdict(plan)}
    shown |= {"first_full": plan.first_full.name, "first_ceiling": plan.first_ceiling.name}
    return json.dumps(_finite({**shown, "figures": msgspec.to_builtins(measured)}))


def _finite(value: Any) -> Any:
    """JSON knows no infinity: null, never."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and value in (float("inf"), float("-inf")) else value


def _show(plan: Plan, measured: Measured) -> None:
    from rich.console import Console

    from pipeline.ops import sizing_text as words

    console = Console(highlight=False)
    console.print(words.load_line(plan.load), style="bold", markup=False)
    for heads, rows in words.tables(plan):
        console.print(_table(heads, rows, console.is_terminal))
    console.print(words.verdict(plan), style="green" if plan.fits else "red", markup=False)
    for line in (*plan.notes, *words.origin_lines(measured)):
        console.print(line, style="dim", markup=False)


def _table(heads: tuple[str, ...], rows: Any, boxed: bool) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD if boxed else None, show_header=bool(heads[1]), pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
