"""`ctxpipe eval init`: a small suite that runs and passes, to be replaced piece by piece."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def command(folder: Path) -> None:
    """Write a suite into a new FOLDER: a flow, a context, recorded models, and a case of every kind."""
    from pipeline.evaluation.scaffold import begin_suite

    for path in begin_suite(folder):
        click.echo(folder / path)
    told = f"It runs as it is: ctxpipe eval run {folder} --no-baseline\nThen: ctxpipe eval bless {folder} --reason …"
    click.echo(told, err=True)
