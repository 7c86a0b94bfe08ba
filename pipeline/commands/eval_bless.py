"""`ctxpipe eval bless`: what a suite gives now becomes its baseline; nothing else moves it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands._eval_running import SUITE

if TYPE_CHECKING:
    from pipeline.evaluation.baseline import Baseline
    from pipeline.evaluation.suite import Suite
    from pipeline.evaluation.values import CaseResult, Run

OTHER_ORDER_SEED = 1
TOLD_MAX = 20
GIT_TIMEOUT_S = 10


@click.command()
@click.argument("suite", type=SUITE)
@click.option("--reason", required=True, metavar="TEXT", help="Why it moves: reviewers and the history will read it.")
@click.option("--accept", multiple=True, metavar="ID",
              help="A case that may go on failing; may be given several times.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(min=0), metavar="N", help="Processes; 0: this one, for a debugger.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object as the last line.")
def command(suite: Path, reason: str, accept: tuple[str, ...], jobs: int | None, as_json: bool) -> None:
    """Run SUITE twice, in two orders, and make what it gives its baseline: the file baseline.json, to be committed.

    Refuses failing cases that nobody accepts (exit code 1), and what can't be relied on: harness errors, and flows that
    do not give the same twice (3). What was accepted before stays accepted.
    """
    import json

    from pipeline.evaluation.baseline import FILE, blessed, moves, read_baseline, write_baseline
    from pipeline.evaluation.suite import read_suite

    reason = " ".join(reason.split())
    if not reason:
        raise click.UsageError("--reason is empty; say why the baseline moves, for those who review it")
    found = read_suite(suite)
    file = suite / FILE
    before, trusted = read_baseline(file, sealed=False), _sealed(file)
    run = _run_twice(found, jobs, quiet=as_json)
    _refuse_failing(run, accept, trusted)
    moved = moves(before, run)
    told: dict[str, Any] = {"suite": run.suite, "cases": len(run.results), "digest": run.digest, "moved": moved}
    told["passed"] = sum(result.passed for result in run.results)
    same = not moved and trusted is not None and trusted.suite_digest == found.digest
    if not same:
        day = datetime.now(UTC).date().isoformat()
        made = blessed(run, found.digest, before, reason=reason, by=_author(suite), date=day, moved=moved)
        write_baseline(file, made)
    _say(file, moved, same=same, err=as_json)
    if as_json:
        click.echo(json.dumps({**told, "blessed": not same}))


def _sealed(file: Path) -> Baseline | None:
    """The baseline where it is what `bless` wrote: only that one's accepted failures stay accepted."""
    from pipeline.evaluation.baseline import read_baseline
    from pipeline.guard.errors import HarnessError

    try:
        return read_baseline(file)
    except HarnessError as error:
        click.echo(f"note: {error}", err=True)
        return None


def _run_twice(suite: Suite, jobs: int | None, *, quiet: bool) -> Run:
    """Raises HarnessError where nothing can be relied on."""
    from pipeline.commands._eval_running import run_with_progress
    from pipeline.evaluation.gate import listed
    from pipeline.guard.errors import HarnessError

    run = run_with_progress(suite, f"{suite.name}, once", jobs=jobs, seed=None, quiet=quiet)
    if run.harness:
        raise HarnessError("\n".join(("nothing was blessed:", *run.harness)))
    again = run_with_progress(suite, f"{suite.name}, again", jobs=jobs, seed=OTHER_ORDER_SEED, quiet=quiet)
    if again.harness:
        raise HarnessError("\n".join(("nothing was blessed; in another order:", *again.harness)))
    if run.digest != again.digest:
        first = {result.id: result.output_digest for result in run.results}
        other = {result.id: result.output_digest for result in again.results}
        unsteady = sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name))
        raise HarnessError(
            f"nothing was blessed, for what came was not the same twice: {listed(unsteady)}. Take time "
            "from the clock that the flow is given, chance from a fixed seed, and let no case see another's state"
        )
    return run


def _refuse_failing(run: Run, accept: tuple[str, ...], before: Baseline | None) -> None:
    failing = {result.id: result for result in run.results if not result.passed}
    ids = {result.id for result in run.results}
    wrong = [f"--accept {name}: the suite has no such case" for name in accept if name not in ids]
    wrong += [f"--accept {name}: it passes" for name in accept if name in ids and name not in failing]
    if wrong:
        raise click.UsageError("\n".join(wrong))
    old = before.by_id if before else {}
    accepted = {name for name, case in old.items() if not case.passed} | set(accept)
    refused = sorted(failing.keys() - accepted)
    if refused:
        _tell_refused([failing[name] for name in refused])
        raise click.exceptions.Exit(1)


def _tell_refused(refused: list[CaseResult]) -> None:
    from pipeline.evaluation.gate import listed
    from pipeline.evaluation.report.visible import cut, visible

    for result in refused[:TOLD_MAX]:
        told = "; ".join(f"{check.check}: {check.told}" for check in result.checks if not check.passed)
        click.echo(f"{result.id}: {visible(cut(told, 500))}", err=True)
    if len(refused) > TOLD_MAX:
        click.echo(f"and {len(refused) - TOLD_MAX} more", err=True)
    names = [result.id for result in refused]
    click.echo(
        f"nothing was blessed, failing: {listed(names)}; mend what they test, or --accept each by its id", err=True
    )


def _say(file: Path, moved: list[str], *, same: bool, err: bool) -> None:
    if same:
        click.echo(f"{file}: nothing moved, it stays as it is", err=err)
        return
    for line in moved:
        click.echo(f"  {line}", err=err)
    click.echo(click.style(f"{file}: written; commit it with the change that it is for", fg="green"), err=err)


def _author(folder: Path) -> str:
    import subprocess

    try:
        done = subprocess.run(
            ["git", "config", "user.name"], cwd=folder, capture_output=True, text=True, timeout=GIT_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip()[:200] or "unknown"
