"""What `ctxpipe eval run` and `bless` share: a suite run with progress, on a terminal, and files written whole."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from pipeline.evaluation.suite import Suite
    from pipeline.evaluation.values import Run

SUITE = click.Path(path_type=Path)


def run_with_progress(
    suite: Suite, what: str, *, only: Sequence[str] = (), jobs: int | None, seed: int | None, quiet: bool
) -> Run:
    from pipeline.evaluation.runner import run_suite

    with _progress(what, quiet=quiet) as progress:
        return run_suite(suite, only=tuple(only) or None, jobs=jobs, seed=seed, progress=progress)


def lower(old: Sequence[float], new: Sequence[float], groups: Sequence[str]) -> Literal["lower", "same", "unknown"]:
    """Statistics are imported only where a graded score fell."""
    from pipeline.evaluation.statistics.lower import lower_than_baseline

    return lower_than_baseline(old, new, groups)


def write_whole(file: Path, text: str) -> None:
    """Raises EnvironmentProblem."""
    from pipeline.core.errors import EnvironmentProblem

    beside = file.with_name(f".{file.name}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        beside.replace(file)
    except OSError as error:
        raise EnvironmentProblem(f"{file}: can't be written: {error.strerror or error}") from error


@contextmanager
def _progress(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    if quiet or not sys.stderr.isatty():
        yield lambda done, of: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
