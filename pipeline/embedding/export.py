"""A sentence-transformers model → a directory for the engine `onnx`, checked against the original on sample texts.

The directory appears whole or not at all, and the same model gives the same files on every machine.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import msgspec

from pipeline.core.config import EmbeddingConfig
from pipeline.core.errors import ConfigError, CtxpipeError
from pipeline.embedding.manifest import (
    COSINE_MIN,
    FORMAT,
    MANIFEST_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    Manifest,
    read_manifest,
    write_manifest,
)
from pipeline.embedding.models import canonical_name, file_digest
from pipeline.embedding.packages import require
from schemas.context import Embedding

Precision = Literal["fp32", "int8"]
Report = Callable[[str], None]

SAMPLES = (
    "Plane N14228: Boeing 737-824, built in 1999, fixed wing multi engine, 2 engines (turbo-fan), 149 seats.",
    "Airport LAX: Los Angeles Intl, latitude 33.94, longitude -118.41, time zone America/Los_Angeles.",
    "wide-body planes built before 1990 that fly to the west coast",
    "United Air Lines",
    "x",
    "Where is my order? It was to arrive on Monday, and the invoice has been paid twice.",
    "Zürich, São Paulo, 東京, Москва",
    "0123456789 3.14159 -273.15 1e6 <tag> {json: [1, 2]}",
    "The engine embeds a text that is longer than most: a row of orders, each with its items, prices and dates. " * 4,
    "order 4711, 3 items, shipped 2013-01-01, carrier UA, delayed by thunderstorms; " * 40,
)
"""What an export is compared on: short, long and longer than the model takes, of several scripts."""


class ExportRefused(CtxpipeError):
    """The exported model answers too differently from the original."""

    exit_code = 1


def export_model(
    model: str, precision: Precision, output: Path, config: EmbeddingConfig, *, force: bool = False, report: Report
) -> tuple[Manifest, bool]:
    """The manifest of the directory `output`, and whether it was made now; an equal export that is there stays.

    Blocks for about ten seconds. Raises ConfigError (no such model, `output` is something else), EnvironmentProblem
    and ExportRefused.
    """
    require("torch", "sentence_transformers", "onnx", "onnxscript", "onnxruntime")
    if not force:
        there = _there(model, precision, output, config)
        if there is not None:
            return there, False
    elif output.exists() and any(output.iterdir()) and not (output / MANIFEST_FILE).is_file():
        raise ConfigError([f"{output} holds something else than an exported model; name another --output"])
    from pipeline.embedding.sentence import open_for_export

    report(f"loading {model}")
    original = open_for_export(Embedding(engine="sentence-transformers", model=model), config)
    pooling = original.identity.pooling
    if pooling not in ("mean", "cls"):
        raise ConfigError(
            [f"model {model} pools by {pooling or 'a rule of its own'}; the engine onnx knows mean and cls"]
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        manifest = _make(made, model, precision, original, report)
        made.chmod(0o755)
        if output.exists():
            shutil.rmtree(output)
        made.rename(output)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return manifest, True


def _there(model: str, precision: Precision, output: Path, config: EmbeddingConfig) -> Manifest | None:
    """What an earlier export left at `output`. Raises ConfigError where that is something else."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if not (output / MANIFEST_FILE).is_file():
        raise ConfigError([f"{output} holds something else than an exported model; name another --output"])
    manifest = read_manifest(output)
    if (manifest.model, manifest.precision) != (canonical_name(model), precision):
        text = (
            f"{output} holds {manifest.model} in {manifest.precision}; name another --output, or --force to replace it"
        )
        raise ConfigError([text])
    return manifest


def _make(made: Path, model: str, precision: Precision, original: Any, report: Report) -> Manifest:
    from pipeline.embedding.onnx import quantise

    report("exporting to ONNX")
    whole = made / "whole.onnx"
    try:
        inputs = original.export_onnx(whole)
    except Exception as error:  # whatever a model's own code raises while torch looks through it
        raise ConfigError([f"model {model} can't be exported to ONNX: {str(error).splitlines()[0][:300]}"]) from error
    _strip(whole)
    if precision == "int8":
        report("quantising to int8")
        quantise(whole, made / MODEL_FILE, _sensitive(whole))
        whole.unlink()
        _strip(made / MODEL_FILE)
    else:
        whole.rename(made / MODEL_FILE)
    (made / TOKENIZER_FILE).write_text(original.tokenizer_json(), encoding="utf-8")
    identity = original.identity
    manifest = Manifest(
        format=FORMAT,
        model=canonical_name(model),
        revision=identity.revision,
        precision=precision,
        pooling=identity.pooling,
        dimension=identity.dimension,
        length_max=original.length_max,
        inputs=inputs,
        digests={name: file_digest(made / name) for name in (MODEL_FILE, TOKENIZER_FILE)},
        source_weights=identity.weights,
        source_tokenizer=identity.tokenizer,
        made_with={name: metadata.version(name) for name in ("torch", "transformers", "onnx", "onnxruntime")},
    )
    write_manifest(made, manifest)
    report(f"comparing {len(SAMPLES)} texts with the original")
    return _compared(made, manifest, original)


def _compared(made: Path, manifest: Manifest, original: Any) -> Manifest:
    """Raises ExportRefused."""
    from pipeline.embedding.onnx import open_exported

    engine = open_exported(made, manifest.precision)
    cosines = (engine.embed(SAMPLES).vectors * original.embed(SAMPLES).vectors).sum(axis=1)
    engine.close()
    least = COSINE_MIN[manifest.precision]
    if not cosines.min() >= least:
        raise ExportRefused(
            f"the export in {manifest.precision} is too far from model {manifest.model}: cosine {cosines.min():.4f} on "
            f"{SAMPLES[int(cosines.argmin())][:60]!r}, at least {least} is wanted. Nothing was written"
            + ("; --precision fp32 may do" if manifest.precision == "int8" else "")
        )
    compared = msgspec.structs.replace(
        manifest,
        cosine_min=round(float(cosines.min()), 6),
        cosine_mean=round(float(cosines.mean()), 6),
        texts_compared=len(SAMPLES),
    )
    write_manifest(made, compared)
    return compared


def _sensitive(source: Path) -> list[str]:
    """The first half of the products that narrow (the second of each feed-forward): what comes into them has outliers,
    whose range takes the precision from everything else. MiniLM's least cosine is 0.989 without them, 0.981 with."""
    import onnx

    graph = onnx.load(str(source)).graph
    shapes = {weights.name: tuple(weights.dims) for weights in graph.initializer}
    products = [(node.name, shapes.get(node.input[1], ())) for node in graph.node if node.op_type == "MatMul"]
    narrowing = [name for name, shape in products if len(shape) == 2 and shape[0] > shape[1]]
    return narrowing[: (len(narrowing) + 1) // 2]


def _strip(path: Path) -> None:
    """Takes out where in whose source each node came from: it holds paths of this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import onnx

        model = onnx.load(str(path))
    graph = model.graph
    parts = [model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for function in model.functions:
        parts += [function, *function.node]
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]
    path.write_bytes(model.SerializeToString(deterministic=True))
