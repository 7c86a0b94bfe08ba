"""One value, one text, one digest: what baselines, results and the digest of a suite are compared by."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import BaseModel

DEPTH_MAX = 200
"""Of values; checks go down them by recursion."""


def canonical(value: Any) -> bytes:
    """Sorted keys, no spaces, floats as Python's shortest exact text. Raises ValueError for what JSON can't hold: NaN,
    keys that are no text, half a surrogate pair, objects of unknown types."""
    try:
        text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text holds half of a surrogate pair, which no file can hold") from None


def plain(value: Any, path: str = "", depth: int = 0) -> Any:
    """A copy of dicts, lists, texts, numbers, true, false and null. Models of pydantic and dataclasses become objects,
    decimals texts, tuples lists. Raises ValueError that names the place of what JSON can't hold."""
    if value is None or isinstance(value, bool | str):
        return value
    if depth > DEPTH_MAX:
        raise ValueError(f"it is nested deeper than {DEPTH_MAX} levels, or holds itself")
    if isinstance(value, int | float):
        if not math.isfinite(value):
            raise ValueError(f"{path or 'it'} is {value}, which JSON can't hold")
        return value
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="json"), path, depth)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            one.name: plain(getattr(value, one.name), f"{path}/{one.name}", depth + 1)
            for one in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            raise ValueError(f"{path or 'it'} has the key {wrong!r}, which is no text")
        return {key: plain(inner, f"{path}/{key}", depth + 1) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain(inner, f"{path}/{position}", depth + 1) for position, inner in enumerate(value)]
    if isinstance(value, Decimal):
        return str(value)
    raise ValueError(f"{path or 'it'} is a {type(value).__name__}, which JSON can't hold")


def digest_of(value: Any) -> str:
    """sha256 of the canonical text, as 64 hex digits."""
    return sha256(canonical(value))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def suite_digest(cases: Mapping[str, str], fixtures: Mapping[str, str]) -> str:
    """Of case digests by id and fixture digests by path, whatever their order."""
    return digest_of({"cases": dict(cases), "fixtures": dict(fixtures)})
