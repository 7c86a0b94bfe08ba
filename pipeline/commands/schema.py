"""`ctxpipe schema`: the JSON Schema of context files, for editors that complete and check while one writes."""

from __future__ import annotations

import click


@click.command()
def command() -> None:
    """Print the JSON Schema of the context spec.

    An editor with YAML support uses it through a first line such as
    # yaml-language-server: $schema=context.schema.json
    """
    from schemas.context_schema import printed_schema

    click.echo(printed_schema(), nl=False)
