"""What `ctxpipe eval run` shows people: what flipped, both outputs side by side, and why the verdict is what it is."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.evaluation.gate import Flip
    from pipeline.evaluation.report.reported import Reported

FLIPS_MAX = 20
LINES_MAX, OUTPUT_CHARACTERS_MAX, TOLD_CHARACTERS_MAX = 40, 4000, 1000
PLAIN_WIDTH = 110
COLOURS = {
    "pass": "green",
    "partial": "green",
    "regression": "red",
    "inconclusive": "yellow",
    "harness_error": "red",
    "regressed": "red",
    "failed": "red",
    "missing": "red",
    "improved": "green",
}


def show(found: Reported, *, err: bool) -> None:
    """`err`: on standard error, because standard output is for a program."""
    from pipeline.evaluation.report.reported import STATE_TEXTS, VERDICT_TEXTS
    from pipeline.evaluation.report.visible import cut, visible

    one = found.judgement
    console = _console(err)
    for flip in one.flips[:FLIPS_MAX]:
        head = f"{flip.id} ({flip.kind}): {STATE_TEXTS[flip.state]}"
        click.echo(click.style(f"\n{head}", fg=COLOURS[flip.state], bold=True), err=err)
        told = [f"{check.check}: {check.told}" for check in flip.now.checks if not check.passed] if flip.now else []
        for line in (flip.why, *told):
            if line:
                click.echo(f"  {visible(cut(line, TOLD_CHARACTERS_MAX))}", err=err)
        if flip.state != "missing":
            _show_outputs(flip, console, err=err)
    if len(one.flips) > FLIPS_MAX:
        click.echo(f"\nand {len(one.flips) - FLIPS_MAX} more that flipped; --html or --json show them", err=err)
    for note in one.notes:
        click.echo(f"note: {visible(note)}", err=err)
    if one.other_output:
        click.echo(f"note: {len(one.other_output)} cases pass as before with another output or trace", err=err)
    counted = f"{one.cases:,} cases, {one.passed:,} passed, {one.failed:,} failed"
    accepted = f" ({len(one.accepted)} accepted)" if one.accepted else ""
    summary = f"{visible(one.suite)}: {VERDICT_TEXTS[one.verdict]} ({counted}{accepted}, {one.seconds:.1f} s)"
    click.echo(click.style(summary, fg=COLOURS[one.verdict], bold=True), err=err)
    for reason in one.reasons:
        click.echo(f"  {visible(reason)}", err=err)


def _console(err: bool) -> Console | None:
    """None where no terminal looks."""
    if not (sys.stderr if err else sys.stdout).isatty():
        return None
    from rich.console import Console

    return Console(stderr=err)


def _show_outputs(flip: Flip, console: Console | None, *, err: bool) -> None:
    from pipeline.evaluation.report.difference import side_by_side
    from pipeline.evaluation.report.visible import output_texts

    before, now = output_texts(flip.before, flip.now, OUTPUT_CHARACTERS_MAX)
    if console is None:
        for pair in side_by_side(before, now, PLAIN_WIDTH, LINES_MAX):
            if not pair.differs:
                click.echo(f"    {pair.left}".rstrip(), err=err)
            else:
                lines = (f"  {mark} {text}" for mark, text in (("-", pair.left), ("+", pair.right)) if text)
                click.echo("\n".join(lines), err=err)
        return
    from rich.table import Table
    from rich.text import Text

    width = max(20, shutil.get_terminal_size().columns // 2 - 4)
    table = Table("baseline", "now", expand=True, header_style="dim", box=None)
    for pair in side_by_side(before, now, width, LINES_MAX):
        style = ("red", "green") if pair.differs else ("dim", "dim")
        table.add_row(Text(pair.left, style[0]), Text(pair.right, style[1]))
    console.print(table)
