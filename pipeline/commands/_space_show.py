"""What `ctxpipe space` prints, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands._spaces import definition_of
from pipeline.core.errors import Fatal
from pipeline.ops.space_judge import Judgement, Measured, worst_queries
from pipeline.ops.space_promotion import read_evidence

if TYPE_CHECKING:
    from pipeline.ops.space_digest import SpaceProof
    from pipeline.stores.spaces import SpaceRecord

COLOURS = {"serving": "green", "candidate": "yellow", "previous": "cyan", "retired": "bright_black"}


def record_object(context: str, version: int, record: SpaceRecord) -> dict[str, Any]:
    """A space as `--json` shows it."""
    try:
        definition = definition_of(record)
        embedding = definition.embedding
        engine, model, number_type = str(embedding.engine), embedding.model, definition.identity.number_type
    except Fatal:
        engine = model = number_type = "?"
    evidence = read_evidence(record)
    return {
        "context": context,
        "version": version,
        "space": record.space,
        "state": record.state,
        "engine": engine,
        "model": model,
        "number_type": number_type,
        "dimension": record.dimension,
        "created_at": moment(record.created_us),
        "changed_at": moment(record.changed_us),
        "evidence": evidence or None,
    }


def show_records(rows: Sequence[dict[str, Any]]) -> None:
    """A table, one line per space."""
    head = ("CONTEXT", "SPACE", "STATE", "ENGINE", "MODEL", "DIMENSION", "CREATED", "SINCE", "WHY")
    lines = [head, *map(_line, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for number, line in enumerate(lines):
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        if number:
            cells[2] = click.style(cells[2], fg=COLOURS.get(line[2]))
        click.echo("  ".join(cells).rstrip())


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    model = row["model"] or "-"
    if row["number_type"] == "int8":
        model += " (int8)"
    place = f"{row['context']} v{row['version']}"
    times = (row["created_at"] or "-", row["changed_at"] or "-")
    return (place, row["space"], row["state"], row["engine"], model, str(row["dimension"]), *times, _why(row))


def _why(row: dict[str, Any]) -> str:
    evidence = row["evidence"]
    if not evidence:
        return ""
    reasons = evidence.get("reasons") or [evidence.get("reason") or ""]
    return f"{evidence.get('action', '?')}: {'; '.join(map(str, reasons))}"[:100].rstrip(": ")


def moment(time_us: int) -> str | None:
    return datetime.fromtimestamp(time_us / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S") if time_us else None


def show_status(status: dict[str, Any]) -> None:
    """Of one space."""
    state = click.style(status["state"], fg=COLOURS.get(status["state"]))
    click.echo(f"{status['space']}  {state}  {status['engine']} {status['model']}".rstrip())
    click.echo(
        f"  texts {status['texts']:,}, vectors {status['vectors']:,}, waiting {status['pending']:,}, failing "
        f"{status['failing']:,}, refused {status['refused']:,}"
    )
    for lag in status["topics"]:
        click.echo(f"  {lag['topic']}: {lag['behind']:,} of {lag['records']:,} records to do")
    left = status["left"]
    if left["texts"]:
        time = "time unknown" if left["duration_s"] is None else f"about {duration(left['duration_s'])}"
        cost = "cost unknown" if left["cost"] is None else f"cost {left['cost']:.4g}"
        rate = "" if left["rate_per_s"] is None else f" at {left['rate_per_s']:,.1f} texts/s"
        click.echo(f"  left: {left['texts']:,} texts, {cost}, {time}{rate}")
    for problem, count in status["problems"].items():
        click.echo(f"  {count:,} x {problem}")


def show_proof(proof: SpaceProof) -> None:
    """Digests, and what disagrees by its first keys."""
    for place, digest in proof.digests.items():
        click.echo(f"  {place:<18} {digest}")
    for reason in proof.reasons:
        click.echo(click.style(f"  {reason}", fg="red"))
    for key, one in proof.named:
        click.echo(f"    {key}: {one.kind}: {one.told}")
    if proof.unsettled:
        click.echo(f"  {proof.unsettled:,} keys kept changing while it looked")
    verdict = "complete" if proof.complete else "not complete"
    click.echo(click.style(f"  {verdict}: {proof.bundles:,} bundles", fg="green" if proof.complete else "red"))


def judgement_object(judgement: Judgement) -> dict[str, Any]:
    """What `compare --json` prints."""
    return {
        "decision": judgement.verdict.decision,
        "reasons": judgement.verdict.reasons,
        "k": judgement.gate.k,
        "queries": len(judgement.evaluation.queries) if judgement.evaluation is not None else 0,
        "missing_labels": judgement.missing_labels,
        "candidate": _side(judgement.candidate),
        "serving": _side(judgement.serving),
        "difference": {
            "ndcg": None if judgement.ndcg is None else asdict(judgement.ndcg),
            "recall": None if judgement.recall is None else asdict(judgement.recall),
        },
        "worst_queries": worst_queries(judgement),
    }


def show_judgement(judgement: Judgement) -> None:
    """A table of both spaces, the queries that lose most, and the verdict."""
    ours, theirs = judgement.candidate, judgement.serving
    if ours is not None:
        _show_sides(judgement, ours, theirs)
    for loss in worst_queries(judgement):
        click.echo(
            f"  loses: {loss['query']!r}: nDCG {loss['ndcg_serving']:.3f} -> {loss['ndcg']:.3f}; first "
            f"{', '.join(loss['first'])} instead of {', '.join(loss['first_serving'])}"
        )
    if judgement.missing_labels:
        click.echo(f"  {judgement.missing_labels:,} labelled keys are in neither space")
    decision = judgement.verdict.decision
    click.echo(click.style(decision, fg="green" if decision == "promote" else "red"))
    for reason in judgement.verdict.reasons:
        click.echo(f"  {reason}")


def _show_sides(judgement: Judgement, ours: Measured, theirs: Measured | None) -> None:
    k = judgement.gate.k
    rows = [
        ("", "candidate", "serving", "difference (95 %)"),
        ("space", ours.space, theirs.space if theirs else "-", ""),
        ("model", ours.model or ours.engine, (theirs.model or theirs.engine) if theirs else "-", ""),
        (f"nDCG@{k}", *_figures("ndcg", ours, theirs), _interval(judgement.ndcg)),
        (f"recall@{k}", *_figures("recall", ours, theirs), _interval(judgement.recall)),
        ("index recall", *_figures("index_recall", ours, theirs), ""),
        ("query p50 ms", *_figures("query_p50_ms", ours, theirs, ".2f"), ""),
        ("query p99 ms", *_figures("query_p99_ms", ours, theirs, ".2f"), ""),
        ("cost per query", *_figures("cost_per_query", ours, theirs, ".3g"), ""),
        ("cost of all texts", *_figures("backfill_cost", ours, theirs, ".3g"), ""),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _figures(name: str, ours: Measured, theirs: Measured | None, form: str = ".4f") -> tuple[str, str]:
    found = [getattr(side, name) if side is not None else "-" for side in (ours, theirs)]
    one, other = ("unknown" if value is None else value if value == "-" else format(value, form) for value in found)
    return one, other


def _interval(interval: Any) -> str:
    return "" if interval is None else f"{interval.mean:+.4f} ({interval.low:+.4f} to {interval.high:+.4f})"


def _side(side: Measured | None) -> dict[str, Any] | None:
    return None if side is None else {name: value for name, value in asdict(side).items() if name != "answers"}


def duration(seconds: float) -> str:
    """In the unit that a person would take."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
