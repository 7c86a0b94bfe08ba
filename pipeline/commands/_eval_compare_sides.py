"""Where `ctxpipe eval compare` has its two sides from: results files, suites that it runs, shadow traffic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from pipeline.evaluation.statistics.sides import Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Of one command line. `b` is `a` where one suite stands for both."""

    a: Path
    b: Path
    models: dict[str, str]
    task: str | None
    jobs: int | None
    quiet: bool


def sides_of(asked: Asked) -> tuple[Side, Side]:
    """Raises CompareError or SuiteError with what is wrong with the two."""
    from pipeline.evaluation.statistics.matching import CompareError
    from pipeline.evaluation.statistics.sides import mistakes_between

    a, b = _side("A", asked.a, asked), _side("B", asked.b, asked)
    mistakes = mistakes_between(a, b)
    if mistakes:
        raise CompareError(mistakes)
    return a, b


def sides_of_file(pairs: Path, task: str | None) -> tuple[Side, Side]:
    """Raises CompareError, or CtxpipeError for a file that can't be read."""
    from pipeline.evaluation.statistics.sides import sides_of_pairs
    from pipeline.guard.routing.pairs import read_pairs

    return sides_of_pairs(read_pairs(pairs), str(pairs), task)


def _side(name: Literal["A", "B"], path: Path, asked: Asked) -> Side:
    model = asked.models.get(name)
    if path.is_dir():
        return _run(name, path, model, asked)
    from pipeline.evaluation.results_file import file_digest, read_results
    from pipeline.evaluation.statistics.sides import side_of_run

    if model is not None:
        raise click.UsageError(f"--model {name}={model}: {path} is no folder of a suite, and results are as they are")
    run = read_results(path)
    return side_of_run(name, str(path), run, file_digest(path))


def _run(name: Literal["A", "B"], folder: Path, model: str | None, asked: Asked) -> Side:
    from pipeline.commands._eval_running import run_with_progress
    from pipeline.evaluation.digests import sha256
    from pipeline.evaluation.results_file import results_bytes
    from pipeline.evaluation.statistics.sides import side_of_run
    from pipeline.evaluation.suite import read_suite, with_model

    suite = read_suite(folder)
    if model is not None:
        suite = with_model(suite, model, asked.task)
    what = f"{name}: {suite.name}" + (f" with {model}" if model else "")
    run = run_with_progress(suite, what, jobs=asked.jobs, seed=None, quiet=asked.quiet)
    return side_of_run(name, what.removeprefix(f"{name}: "), run, sha256(results_bytes(run)), suite.guard)
