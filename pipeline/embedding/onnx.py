"""The engine `onnx`: an exported model by onnxruntime, without torch. The only module that knows onnxruntime.

Each text runs for itself, unpadded, side by side in a few threads: dynamic int8 takes its scales from everything in a
batch, so that a text would get another vector in other company. Alone, the same text gives the same bits.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.core.config import EmbeddingConfig
from pipeline.core.errors import ConfigError, Fatal
from pipeline.embedding.engine import Embedded, EngineIdentity
from pipeline.embedding.manifest import MODEL_FILE, TOKENIZER_FILE, Manifest, read_manifest
from pipeline.embedding.models import canonical_name, find_directory
from pipeline.embedding.packages import require
from pipeline.embedding.tokens import TextTokenizer, Tokens, load_tokenizer
from pipeline.embedding.vectors import prepare_texts, unit_vectors
from schemas.context import Embedding

TEXTS_MAX = 64
_NUMBER_TYPES = {"fp32": "float32", "int8": "int8"}


class OnnxEngine:
    """See Engine. At most `threads` texts run at a time, whoever calls; the same text gives the same bits."""

    texts_max = TEXTS_MAX

    def __init__(
        self, session: Any, tokenizer: TextTokenizer, manifest: Manifest, prefixes: tuple[str, str], threads: int
    ) -> None:
        self.identity = EngineIdentity(
            engine="onnx",
            model=manifest.model,
            revision=manifest.revision,
            weights=manifest.digests[MODEL_FILE],
            tokenizer=manifest.digests[TOKENIZER_FILE],
            pooling=manifest.pooling,
            dimension=manifest.dimension,
            number_type=_NUMBER_TYPES[manifest.precision],
        )
        self._session, self._tokenizer, self._manifest = session, tokenizer, manifest
        self._prefixes = prefixes
        self.tokens_max = tokenizer.tokens_max - max(tokenizer.count(prefix) for prefix in prefixes)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="onnx")

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
        import numpy

        prefix = self._prefixes[1 if query else 0]
        found = self._tokenizer.tokenize(prepare_texts(texts, prefix))
        around = self._tokenizer.count(prefix)
        vectors = numpy.zeros((len(texts), self.identity.dimension), numpy.float32)
        for number, pooled in enumerate(self._run_all(found)):
            if pooled.shape != vectors.shape[1:]:
                raise Fatal(f"model {self.identity.model} gave {pooled.shape} where its manifest says {vectors.shape}")
            vectors[number] = pooled
        checked = unit_vectors(vectors, len(texts), self.identity.dimension, f"model {self.identity.model}")
        return Embedded(checked, [max(1, tokens.count - around) for tokens in found], [tokens.cut for tokens in found])

    def token_ends(self, text: str) -> list[int]:
        return self._tokenizer.ends(text)

    def close(self) -> None:
        """Waits for what runs."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._session = None

    def _run_all(self, found: Sequence[Tokens]) -> list[Any]:
        """Long ones first, so that no thread is left alone with one at the end."""
        try:
            order = sorted(range(len(found)), key=lambda number: -len(found[number].ids))
            running = {number: self._threads.submit(self._run, found[number].ids) for number in order}
        except RuntimeError as error:
            raise Fatal(f"model {self.identity.model} has been closed") from error
        return [running[number].result() for number in range(len(found))]

    def _run(self, ids: list[int]) -> Any:
        import numpy

        row = numpy.array([ids], numpy.int64)
        given = {"input_ids": row, "attention_mask": numpy.ones_like(row), "token_type_ids": numpy.zeros_like(row)}
        try:
            hidden = self._session.run(None, {name: given[name] for name in self._manifest.inputs})[0][0]
        except Exception as error:  # onnxruntime's own tree has RuntimeError, and nothing narrower for all of it
            raise Fatal(f"onnxruntime fails on model {self.identity.model}: {str(error)[:300]}") from error
        return hidden[0] if self._manifest.pooling == "cls" else hidden.mean(axis=0, dtype=numpy.float64)


def open_onnx(embedding: Embedding, config: EmbeddingConfig) -> OnnxEngine:
    """Checks the files' digests and loads the model: 0.3 s for 90 MB. Raises ConfigError and EnvironmentProblem."""
    require("onnxruntime", "tokenizers")
    endings = (f"-{embedding.precision}", "")
    directory = find_directory(embedding.model, config, endings, packaged=False)
    if directory is None:
        raise ConfigError([_not_exported(embedding, config)])
    return open_exported(
        directory, embedding.precision, config.threads, (embedding.document_prefix, embedding.query_prefix)
    )


def open_exported(
    directory: Path, precision: str, threads: int = 1, prefixes: tuple[str, str] = ("", "")
) -> OnnxEngine:
    """A directory that export made. Raises ConfigError."""
    manifest = read_manifest(directory)
    if manifest.precision != precision:
        text = f"embedding: the model in {directory} has precision: {manifest.precision}, the spec says {precision}"
        raise ConfigError([text])
    try:
        tokenizer = TextTokenizer(load_tokenizer(directory / TOKENIZER_FILE), manifest.length_max)
        session = _session(directory / MODEL_FILE)
    except Exception as error:  # onnxruntime raises what it likes for files that are no model
        raise ConfigError([f"embedding: the model in {directory} can't be loaded: {str(error)[:300]}"]) from error
    return OnnxEngine(session, tokenizer, manifest, prefixes, threads)


def quantise(source: Path, target: Path, left_out: list[str]) -> None:
    """Products of the fp32 model `source` become int8 in `target`, but for those that `left_out` names.

    Weights have 7 bits: on a CPU without VNNI, sums of 8-bit products would saturate, and one space would have other
    vectors on other workers. Words' own vectors stay as they are: they cost no time, and rounding them costs likeness.
    """
    from onnxruntime.quantization import quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises on the root logger
    try:
        quantize_dynamic(
            source,
            target,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=left_out,
        )
    finally:
        root.setLevel(level)


def _not_exported(embedding: Embedding, config: EmbeddingConfig) -> str:
    folder = config.directories[0] if config.directories else config.folder / "models"
    place = folder / f"{canonical_name(embedding.model)}-{embedding.precision}"
    return (
        f"embedding: engine onnx finds no directory for model {embedding.model!r}; make one with `ctxpipe space export "
        f"--model {embedding.model} --precision {embedding.precision} --output {place}`, and name it as model"
    )


def _session(path: Path) -> Any:
    """One thread per run: texts run side by side, and threads that wait do not spin."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
