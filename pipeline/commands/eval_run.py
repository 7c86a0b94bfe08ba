"""`ctxpipe eval run`: a suite, judged against its baseline, and reported to people and programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands._eval_running import SUITE

if TYPE_CHECKING:
    from pipeline.evaluation.baseline import Baseline
    from pipeline.evaluation.report.reported import Reported
    from pipeline.evaluation.values import Run

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("suite", type=SUITE)
@click.option("--only", multiple=True, metavar="ID",
              help="Only these cases: an id, a pattern such as 'late-*', a kind, or tag:NAME.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(min=0), metavar="N", help="Processes; 0: this one, for a debugger.")
@click.option("--seed", type=int, metavar="N", help="Run the cases in another order; results are the same.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object as the last line.")
@click.option("--junit", type=FILE, metavar="FILE", help="Write JUnit XML.")
@click.option("--markdown", type=FILE, metavar="FILE", help="Write a comment for a pull request.")
@click.option("--html", type=FILE, metavar="FILE", help="Write a page with plots.")
@click.option("--results", type=FILE, metavar="FILE", help="Write all results, for `ctxpipe eval compare`.")
@click.option("--prometheus", type=FILE, metavar="FILE", help="Write metrics, for the textfile collector.")
@click.option("--base", type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="FILE",
              help="The baseline of the branch that the change goes to: reports tell how it moves.")  # fmt: skip
@click.option("--no-baseline", is_flag=True, help="Compare with nothing: every case has to pass.")
def command(
    suite: Path,
    only: tuple[str, ...],
    jobs: int | None,
    seed: int | None,
    as_json: bool,
    junit: Path | None,
    markdown: Path | None,
    html: Path | None,
    results: Path | None,
    prometheus: Path | None,
    base: Path | None,
    no_baseline: bool,
) -> None:
    """Run SUITE, a folder with a suite.yaml, and tell what became worse than its baseline.

    Exit code 0: nothing did; 1: a case that passed fails or is missing, a new one fails, or scores are lower by more
    than chance; 2: scores are lower, and it may be chance; 3: nothing was decided.
    """
    import json

    from pipeline.commands._eval_show import show
    from pipeline.evaluation.report.as_json import as_object

    wanted = {"junit": junit, "markdown": markdown, "html": html, "prometheus": prometheus}
    files = {name: file for name, file in wanted.items() if file is not None}
    _remove([*files.values(), *([results] if results else [])])
    found, run = _judge(suite, only, jobs, seed, base, against_baseline=not no_baseline, quiet=as_json)
    _write(found, files)
    if run is not None and results is not None:
        _write_results(run, results)
    show(found, err=as_json)
    if as_json:
        click.echo(json.dumps(as_object(found)))
    click.get_current_context().exit(found.judgement.exit_code)


def _judge(
    folder: Path,
    only: tuple[str, ...],
    jobs: int | None,
    seed: int | None,
    base: Path | None,
    *,
    against_baseline: bool,
    quiet: bool,
) -> tuple[Reported, Run | None]:
    """A suite that can't be run is judged too, so that every report tells why."""
    from pipeline.commands._eval_running import lower, run_with_progress
    from pipeline.evaluation.baseline import FILE as BASELINE
    from pipeline.evaluation.baseline import read_baseline
    from pipeline.evaluation.gate import judged, stopped
    from pipeline.evaluation.report.reported import reported
    from pipeline.evaluation.suite import read_suite
    from pipeline.guard.errors import HarnessError

    name = folder.resolve().name
    try:
        suite = read_suite(folder)
        name = suite.name
        baseline = read_baseline(folder / BASELINE) if against_baseline else None
        run = run_with_progress(suite, name, only=only, jobs=jobs, seed=seed, quiet=quiet)
    except HarnessError as error:
        return reported(stopped(name, str(error).splitlines()), None, None, None), None
    before = _base(base) if base is not None else None
    whys = {case.id: case.why for case in suite.cases}
    judgement = judged(
        run, whys, suite.digest, baseline, lower=lower, whole=not only, against_baseline=against_baseline
    )
    return reported(judgement, run, baseline, before), run


def _base(file: Path) -> Baseline | None:
    """It is only told of: one that is damaged must not block the change that mends it."""
    from pipeline.evaluation.baseline import read_baseline
    from pipeline.guard.errors import HarnessError

    try:
        return read_baseline(file, sealed=False)
    except HarnessError as error:
        click.echo(f"note: how the baseline moves can't be told: {error}", err=True)
        return None


def _remove(files: list[Path]) -> None:
    """Reports of an earlier run must not pass for those of one that is broken off. Raises EnvironmentProblem."""
    from pipeline.core.errors import EnvironmentProblem

    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise EnvironmentProblem(f"{file}: can't be replaced: {error.strerror or error}") from error


def _write(found: Reported, files: Mapping[str, Path]) -> None:
    from pipeline.commands._eval_running import write_whole
    from pipeline.core.clock import SystemClock
    from pipeline.evaluation.report.junit import junit
    from pipeline.evaluation.report.markdown import markdown
    from pipeline.evaluation.report.page import page
    from pipeline.evaluation.report.prometheus import prometheus

    writers: Mapping[str, Callable[[Reported], str]] = {
        "junit": junit,
        "markdown": markdown,
        "html": page,
        "prometheus": lambda found: prometheus(found, SystemClock().now_us() / 1_000_000),
    }
    for name, file in files.items():
        write_whole(file, writers[name](found))


def _write_results(run: Run, file: Path) -> None:
    from pipeline.core.errors import EnvironmentProblem
    from pipeline.evaluation.results_file import write_results

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_results(run, file)
    except OSError as error:
        raise EnvironmentProblem(f"{file}: can't be written: {error.strerror or error}") from error
