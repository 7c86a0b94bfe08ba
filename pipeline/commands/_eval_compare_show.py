"""What `ctxpipe eval compare` shows people: the plan, then what pairs say, then what changed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pipeline.evaluation.compare import Comparison
    from pipeline.evaluation.statistics.planning import Plan
    from pipeline.evaluation.statistics.sequence import Look
    from pipeline.evaluation.statistics.sides import Side

CHANGED_MAX = 10
COLOURS = {"better": "green", "not_better": "red", "inconclusive": "yellow"}


def show_plans(plans: Sequence[Plan], claim_points: float, *, err: bool) -> None:
    """Told before results are opened."""
    from pipeline.evaluation.compare import claim_text

    first = plans[0].assumed
    click.echo(
        f'claim "{claim_text(claim_points)}": to show a true gain of {100 * first.effect:g} points with '
        f"{first.power:.0%} power, at 5%, it takes",
        err=err,
    )
    for plan in plans:
        one = plan.assumed
        spread = f"{one.discordant:.0%} of pairs differ" if one.discordant is not None else f"sd {one.deviation:g}"
        if plan.pairs is None:
            needed = f"more than {plan_max():,} pairs"
        else:
            needed = f"{plan.pairs:,} pairs" + (f" in {plan.groups:,} groups" if one.group_size > 1 else "")
        watched = f"; watched all the time it stops after about {plan.watched_pairs:,}" if plan.watched_pairs else ""
        click.echo(f"  {needed} if {spread}{watched}", err=err)


def plan_max() -> int:
    from pipeline.evaluation.statistics.planning import PAIRS_MAX

    return PAIRS_MAX


def show(found: Comparison, a: Side, b: Side, *, err: bool) -> None:
    """`err`: on standard error, because standard output is for a program."""
    from pipeline.evaluation.compare import claim_text
    from pipeline.evaluation.report.visible import cut, visible

    click.echo(f"A (active): {visible(_named(a))}", err=err)
    click.echo(f"B (candidate): {visible(_named(b))}", err=err)
    click.echo(f'claim: B is {claim_text(found.claim_points)} by "{visible(found.metric)}"', err=err)
    for row in _rows(found):
        click.echo(f"  {row}", err=err)
    _show_slices(found, err=err)
    if found.changed:
        click.echo(f"changed, worst first ({len(found.changed)} cases):", err=err)
    for one in found.changed[:CHANGED_MAX]:
        click.echo(f"  {one.id} ({one.kind}): {one.active:.4g} → {one.candidate:.4g}", err=err)
    for note in found.notes:
        click.echo(f"note: {visible(cut(note, 1000))}", err=err)
    if a.left_out:
        click.echo(f"note: {a.left_out} pairs of models that were compared before were left out", err=err)
    colour = COLOURS[found.verdict] if found.passed or found.verdict != "better" else "yellow"
    click.echo(click.style(visible(found.why), fg=colour, bold=True), err=err)


def look_line(look: Look) -> str:
    waiting = f", {look.open_groups} groups wait for more" if look.open_groups else ""
    return (
        f"{look.pairs:,} pairs counted in {look.units:,} groups{waiting}: {100 * look.mean:+.2f} points, between "
        f"{100 * look.low:+.1f} and {100 * look.high:+.1f}; evidence {look.evidence:.3g} of 20"
    )


def _named(side: Side) -> str:
    models = ", ".join(
        f"{task}: {one.endpoint} ({' '.join(part for part in (one.model, one.revision) if part)})"
        for task, one in sorted(side.models.items())
    )
    return f"{side.label}{'; ' + models if models else ''}"


def _rows(found: Comparison) -> list[str]:
    rows = [
        f"mean       {found.active_mean:.2f} → {found.candidate_mean:.2f} points, difference {found.difference:+.2f}",
        f"bounds     at least {found.low:+.2f} (one-sided 95%), at most {found.high:+.2f} (two-sided 95%)",
        f"pairs      {found.pairs:,} in {found.groups:,} groups: {found.better:,} better, {found.worse:,} worse, "
        f"{found.ties:,} the same",
        f"p          {found.p_value:.4g} ({found.method})",
    ]
    if found.design_effect > 1.05:
        worth = found.pairs / found.design_effect
        rows.append(f"likeness   pairs of a group are alike: they are worth {worth:,.0f} independent ones")
    if found.shown_points is not None:
        rows.append(f"power      pairs like these show a gain of {found.shown_points:.1f} points or more, 4 times in 5")
    for limit in found.limits:
        kept = "kept" if limit.passed else "not shown to be kept" if limit.measure not in found.broken else "broken"
        observed = "unknown" if limit.observed is None else f"{limit.observed:+.4g}"
        bound = "unknown" if limit.bound is None else f"{limit.bound:+.4g}"
        rows.append(f"limit      {limit.measure} {limit.limit:+.4g}: observed {observed}, at most {bound}: {kept}")
    return rows


def _show_slices(found: Comparison, *, err: bool) -> None:
    if len(found.slices) < 2:
        return
    if not (sys.stderr if err else sys.stdout).isatty():
        for one in found.slices:
            click.echo(f"  {one.kind}: {one.difference:+.2f} points in {one.pairs:,} pairs", err=err)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("kind", "pairs", "groups", "difference", "95%", "p of worse (Holm)"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for one in found.slices:
        between = "" if one.low is None or one.high is None else f"{one.low:+.2f} … {one.high:+.2f}"
        style = "red" if one.worse else ""
        table.add_row(
            one.kind, f"{one.pairs:,}", f"{one.groups:,}", f"{one.difference:+.2f}", between, f"{one.p_worse:.3g}",
            style=style,
        )  # fmt: skip
    Console(stderr=err).print(table)
