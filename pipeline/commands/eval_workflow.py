"""`ctxpipe eval workflow`: the gate for a team's own pipeline, printed, since a package is all that a team installs."""

from __future__ import annotations

import click


@click.command()
@click.argument("host", type=click.Choice(["github", "gitlab"]))
def command(host: str) -> None:
    """Print the workflow for GitHub, or the template for GitLab, that blocks changes by `ctxpipe eval run`.

    \b
    ctxpipe eval workflow github >.github/workflows/eval-gate.yml   # call it by `uses:`, with the suite's folder
    ctxpipe eval workflow gitlab >ci/gitlab-eval-gate.yml           # include it, and extend .ctxpipe-eval-gate
    """
    from deploy.ci import GITHUB, GITLAB

    file = {"github": GITHUB, "gitlab": GITLAB}[host]
    click.echo(file.read_text(encoding="utf-8"), nl=False)
