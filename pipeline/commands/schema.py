"""`ctxpipe schema`: JSON Schemas of the files that people write, for editors that complete and check meanwhile."""

from __future__ import annotations

import click


@click.command()
@click.option("--eval-case", is_flag=True, help="Of a line of an evaluation suite's cases instead.")
def command(eval_case: bool) -> None:
    """Print the JSON Schema of the context spec.

    An editor with YAML support uses it through a first line such as
    # yaml-language-server: $schema=context.schema.json
    """
    if eval_case:
        from pipeline.evaluation.case_file import printed_case_schema

        click.echo(printed_case_schema(), nl=False)
        return
    from schemas.context_schema import printed_schema

    click.echo(printed_schema(), nl=False)
