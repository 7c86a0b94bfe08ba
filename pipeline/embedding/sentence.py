"""The engine `sentence-transformers`: any model of that library from a directory, by torch on CPU or CUDA.

The only module that knows torch and sentence-transformers. The hub is asked only where the configuration allows it.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core.config import EmbeddingConfig
from pipeline.core.errors import ConfigError, EnvironmentProblem, Fatal, Retryable
from pipeline.embedding.engine import Embedded, EngineIdentity
from pipeline.embedding.models import canonical_name, find_directory, no_such_model, tokenizer_digest, weights_digest
from pipeline.embedding.packages import require
from pipeline.embedding.tokens import CHARACTERS_AT_ONCE_MAX, TextTokenizer, ends_of
from pipeline.embedding.vectors import prepare_texts, unit_vectors, word_ends
from schemas.context import Embedding

Kind = TypeVar("Kind", bound="SentenceEngine")

TEXTS_MAX = 64
LENGTH_MAX = 512
"""Of models that name no limit of their own."""
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


class SentenceEngine:
    """See Engine. Calls from several threads take turns: torch's own threads work for the one that runs."""

    texts_max = TEXTS_MAX

    def __init__(self, model: Any, identity: EngineIdentity, prefixes: tuple[str, str], device: str) -> None:
        self.identity = identity
        self.model = model
        self._prefixes, self._device = prefixes, device
        length = min(int(model.max_seq_length or LENGTH_MAX), 1_000_000)
        backend = getattr(model.tokenizer, "backend_tokenizer", None)
        self._tokenizer = None if backend is None else TextTokenizer(_copied(backend), length)
        self._whole_max = length if self._tokenizer is None else self._tokenizer.tokens_max
        self.tokens_max = self._whole_max - max(self._count(prefix) for prefix in prefixes)
        self._turn = threading.Lock()

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
        prefix = self._prefixes[1 if query else 0]
        prepared = prepare_texts(texts, prefix)
        counts = self._counts(prepared)
        with self._turn:
            vectors = self._encode(self._heads(prepared, counts))
        checked = unit_vectors(vectors, len(texts), self.identity.dimension, f"model {self.identity.model}")
        around = self._count(prefix)
        return Embedded(
            checked,
            [max(1, count - around) for count in counts],
            [max(0, count - self._whole_max) for count in counts],
        )

    def token_ends(self, text: str) -> list[int]:
        return ends_of(self._tokenizer, text)

    def close(self) -> None:
        """The model's memory is freed with the last reference to it."""
        self.model = None

    def _counts(self, texts: list[str]) -> list[int]:
        if self._tokenizer is None:
            return [len(word_ends(text)) for text in texts]
        return [tokens.count for tokens in self._tokenizer.tokenize(texts)]

    def _count(self, prefix: str) -> int:
        return len(word_ends(prefix)) if self._tokenizer is None else self._tokenizer.count(prefix)

    def _heads(self, texts: list[str], counts: list[int]) -> list[str]:
        """What lies far behind the model's limit is not tokenised a second time."""
        enough = 2 * self._whole_max
        return [
            text[:CHARACTERS_AT_ONCE_MAX]
            if count > enough and len(self.token_ends(text[:CHARACTERS_AT_ONCE_MAX])) > enough
            else text
            for text, count in zip(texts, counts, strict=True)
        ]

    def _encode(self, texts: list[str]) -> Any:
        import torch

        if self.model is None:
            raise Fatal(f"model {self.identity.model} has been closed")
        try:
            return self.model.encode(
                texts,
                prompt="",  # prefixes are the spec's; a model's own default would be one more
                batch_size=TEXTS_MAX,
                show_progress_bar=False,
                convert_to_numpy=True,
                normalize_embeddings=True,
            )
        except torch.cuda.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise Retryable(f"model {self.identity.model}: CUDA has not enough memory for this batch") from error


def open_sentence_transformers(embedding: Embedding, config: EmbeddingConfig) -> SentenceEngine:
    """Loads the model. Raises ConfigError and EnvironmentProblem."""
    return _opened(embedding, config, SentenceEngine, {})


def _opened(embedding: Embedding, config: EmbeddingConfig, kind: type[Kind], settings: dict[str, str]) -> Kind:
    require("torch", "sentence_transformers")
    directory = find_directory(embedding.model, config)
    if directory is None:
        if not config.hub or embedding.model.startswith((".", "/", "~")):
            raise ConfigError([no_such_model(embedding.model, config)])
        directory = _from_hub(embedding.model, embedding.revision)
    lacking = [name for name in ("config.json", "modules.json") if not (directory / name).is_file()]
    if not any(directory.rglob("*.safetensors")) and not any(directory.rglob("pytorch_model*.bin")):
        lacking.append("model.safetensors")
    if lacking:
        raise ConfigError(
            [f"embedding: {directory} is no directory of a sentence-transformers model: {', '.join(lacking)} not there"]
        )
    model = _loaded(directory, embedding, config, settings)
    identity = EngineIdentity(
        engine="sentence-transformers",
        model=canonical_name(embedding.model),
        revision=embedding.revision or "",
        weights=weights_digest(directory),
        tokenizer=tokenizer_digest(directory),
        pooling=pooling_of(directory),
        dimension=int(model.get_embedding_dimension()),
    )
    return kind(model, identity, (embedding.document_prefix, embedding.query_prefix), embedding.device)


class ExportableEngine(SentenceEngine):
    """One whose model can be written as ONNX: its transformer alone, pooling is the engine's."""

    @property
    def length_max(self) -> int:
        """Of what the model takes, with the tokenizer's own signs."""
        return min(int(self.model.max_seq_length or LENGTH_MAX), 1_000_000)

    def tokenizer_json(self) -> str:
        """Without truncation and padding: the engine onnx cuts by itself."""
        tokenizer = _copied(self.model.tokenizer.backend_tokenizer)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return str(tokenizer.to_str())

    def export_onnx(self, path: Path) -> list[str]:
        """Writes the transformer with free batch size and length; gives the names of its inputs."""
        import torch

        taken = set(self.model.tokenizer.model_input_names)
        inputs: list[str] = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in taken]
        batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=self.length_max)
        sample = torch.ones((2, 16), dtype=torch.int64)
        given = {name: torch.zeros_like(sample) if name == "token_type_ids" else sample.clone() for name in inputs}
        given["attention_mask"][1, 10:] = 0
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program = torch.onnx.export(
                _hidden_states(self.model[0].model),
                tuple(given.values()),
                dynamo=True,
                dynamic_shapes={name: {0: batch, 1: length} for name in inputs},
                input_names=inputs,
                output_names=["hidden"],
                external_data=False,
                verbose=False,
            )
        assert program is not None, "torch.onnx.export gives a program unless it is given a file"
        program.save(str(path))
        return inputs


def open_for_export(embedding: Embedding, config: EmbeddingConfig) -> ExportableEngine:
    """As open_sentence_transformers, with attention as plain products, which ONNX has no other form for.

    Raises ConfigError also for models that the engine onnx could not compute: more than a transformer and pooling.
    """
    engine = _opened(embedding, config, ExportableEngine, {"attn_implementation": "eager"})
    modules = [type(module).__name__ for module in engine.model]
    if modules[:2] != ["Transformer", "Pooling"] or modules[2:] not in ([], ["Normalize"]):
        raise ConfigError([f"model {embedding.model} is made of {', '.join(modules)}; onnx knows Transformer, Pooling"])
    if getattr(engine.model.tokenizer, "backend_tokenizer", None) is None:
        raise ConfigError([f"model {embedding.model} has no tokenizer.json, which the engine onnx needs"])
    return engine


def pooling_of(directory: Path) -> str:
    """mean, cls, max…, several joined by +; empty where the model's directory does not say."""
    try:
        settings = json.loads((directory / "1_Pooling" / "config.json").read_text())
    except (OSError, ValueError):
        return ""
    if "pooling_mode" in settings:
        return str(settings["pooling_mode"])
    names = [name for name, on in settings.items() if on is True and name.startswith("pooling_mode_")]
    return "+".join(name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for name in names)


def _loaded(directory: Path, embedding: Embedding, config: EmbeddingConfig, settings: dict[str, str]) -> Any:
    if not config.hub:
        # Read when the libraries are imported and when a model is loaded.
        os.environ.update(_OFFLINE)
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if embedding.device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentProblem(
            "embedding: device: cuda, but torch finds no CUDA device here; write device: cpu, or install a driver "
            "and a build of torch for it"
        )
    torch.set_num_threads(config.threads)
    try:
        model = SentenceTransformer(
            str(directory), device=embedding.device, local_files_only=True, model_kwargs=settings or None
        )
    except Exception as error:  # whatever broken files raise: safetensors, JSON, missing keys
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError([f"embedding: the model in {directory} can't be loaded: {reason[:300]}"]) from error
    return model.eval()


def _from_hub(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EnvironmentProblem(f"embedding: model {model} can't be fetched from the hub: {reason[:300]}") from error


def _copied(backend: Any) -> Any:
    """One of our own: the model's is set to truncate and pad while it runs."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(backend.to_str())


def _hidden_states(transformer: Any) -> Any:
    import torch

    class HiddenStates(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            return self.transformer(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state

    return HiddenStates().eval()
