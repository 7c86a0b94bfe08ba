"""The manifest of an exported model: what its directory holds and computes, and how near to the original that is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from pipeline.core.errors import ConfigError
from pipeline.embedding.models import file_digest

MANIFEST_FILE = "ctxpipe-model.json"
MODEL_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
FORMAT = 1

COSINE_MIN = {"fp32": 0.9999, "int8": 0.98}
"""Of every sample text, to the vector of the original: below it an export is refused."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`digests`: SHA-256 by file name. `source_…`: digests of the original's files. `length_max` counts the tokenizer's
    own signs. `made_with`: versions of the packages that exported it."""

    format: int
    model: str
    revision: str
    precision: Literal["fp32", "int8"]
    pooling: Literal["mean", "cls"]
    dimension: int
    length_max: int
    inputs: list[str]
    digests: dict[str, str]
    source_weights: str
    source_tokenizer: str
    cosine_min: float = 0.0
    cosine_mean: float = 0.0
    texts_compared: int = 0
    made_with: Mapping[str, str] = {}


def write_manifest(directory: Path, manifest: Manifest) -> None:
    data = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2)
    (directory / MANIFEST_FILE).write_bytes(data + b"\n")


def read_manifest(directory: Path) -> Manifest:
    """Raises ConfigError: files lack, the manifest is of another release or none, a file differs from its digest."""
    lacking = [name for name in (MANIFEST_FILE, MODEL_FILE, TOKENIZER_FILE) if not (directory / name).is_file()]
    if lacking:
        raise ConfigError(
            [
                f"embedding: {directory} is no exported model, {' and '.join(lacking)} not there; make one with "
                f"`ctxpipe space export --model NAME --output {directory}`"
            ]
        )
    path = directory / MANIFEST_FILE
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError([f"embedding: {path} can't be read: {error}; export the model again"]) from error
    if manifest.format != FORMAT:
        text = f"embedding: {path} has format {manifest.format}, this release knows {FORMAT}; export the model again"
        raise ConfigError([text])
    changed = [
        name for name in (MODEL_FILE, TOKENIZER_FILE) if file_digest(directory / name) != manifest.digests.get(name)
    ]
    if changed:
        raise ConfigError(
            [
                f"embedding: {' and '.join(changed)} in {directory} differ from the manifest's digests: the files were "
                "changed or damaged after the export; export the model again"
            ]
        )
    return manifest
