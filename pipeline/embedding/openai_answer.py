"""An answer of an OpenAI-compatible endpoint → vectors, or the error that says what the caller does. Pure."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import msgspec

from pipeline.core.errors import CtxpipeError, Fatal, Poison, Retryable
from pipeline.embedding.endpoint_gate import Refused
from pipeline.embedding.engine import Throttled

if TYPE_CHECKING:
    import numpy

    Matrix = numpy.ndarray[tuple[int, int], numpy.dtype[numpy.float32]]

RETRY_AFTER_S_MAX = 300.0
RETRY_AFTER_S_DEFAULT = 5.0
_REASON_CHARACTERS_MAX = 300
_OWN_PARAMETERS = ("model", "dimensions", "encoding_format")
"""Of a request: a refusal of these concerns every text."""


class _Item(msgspec.Struct):
    embedding: list[float] | str
    index: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    total_tokens: int | None = None


class _Answer(msgspec.Struct):
    data: list[_Item]
    usage: _Usage | None = None


class _Error(msgspec.Struct):
    message: str | None = None
    param: str | None = None


def read_answer(body: bytes, texts: int, dimension: int | None, who: str) -> tuple[Matrix, int | None]:
    """Vectors in the order of the texts as they came, not of length 1 yet, and how many tokens were paid for.

    `dimension` None takes any, the same for all. Raises Fatal for everything that is no such answer.
    """
    import numpy

    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Fatal(f"{who} gave no answer of the /embeddings API: {error}; is its url right, up to /v1?") from error
    if len(answer.data) != texts:
        raise Fatal(f"{who} gave {len(answer.data)} vectors for {texts} texts")
    numbers = [place if item.index is None else item.index for place, item in enumerate(answer.data)]
    if sorted(numbers) != list(range(texts)):
        raise Fatal(f"{who} numbered its vectors {numbers[:10]} instead of 0 to {texts - 1}: whose they are is unknown")
    rows = {number: _row(item.embedding, who) for number, item in zip(numbers, answer.data, strict=True)}
    wanted = dimension or len(rows[0])
    for row in rows.values():
        if len(row) != wanted or not len(row):
            raise Fatal(
                f"{who} gave a vector of {len(row)} dimensions where {wanted} are expected; correct the spec's "
                "'dimension', or set ask_dimension: true of the endpoint if the model can shorten"
            )
    usage = answer.usage
    tokens = None if usage is None else usage.prompt_tokens if usage.prompt_tokens is not None else usage.total_tokens
    return numpy.stack([rows[number] for number in range(texts)]), tokens


def error_of(status: int, headers: Mapping[str, str], body: bytes, who: str, now: datetime) -> CtxpipeError:
    """What an answer that is not 200 means to the caller."""
    error = _error_in(body)
    said = error.message or body[:_REASON_CHARACTERS_MAX].decode("utf-8", "replace")
    reason = " ".join(said.split())[:_REASON_CHARACTERS_MAX]
    text = f"{who} answered {status}" + (f": {reason}" if reason else "")
    asked = retry_after_s(headers, now)
    if status == 429 or (status in (503, 529) and asked is not None):
        return Throttled(text, RETRY_AFTER_S_DEFAULT if asked is None else asked)
    if status >= 500 or status in (408, 409, 425):
        return Retryable(text)
    if status in (401, 403):
        return Refused(f"{text}; correct the endpoint's api_key")
    if status in (400, 413, 422) and error.param not in _OWN_PARAMETERS:
        return Poison(text)
    return Refused(f"{text}; correct the endpoint's url, or the spec's model")


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Both forms of Retry-After, and milliseconds as OpenAI gives them; None where nothing readable stands there."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if not value:
            continue
        try:
            seconds = float(value) / unit
        except ValueError:
            try:
                date = parsedate_to_datetime(value)
            except ValueError:
                continue
            seconds = (date if date.tzinfo else date.replace(tzinfo=now.tzinfo)).timestamp() - now.timestamp()
        if not math.isnan(seconds):
            return min(max(seconds, 0.0), RETRY_AFTER_S_MAX)
    return None


def _row(embedding: list[float] | str, who: str) -> numpy.ndarray[tuple[int], numpy.dtype[numpy.float32]]:
    import numpy

    if isinstance(embedding, str):
        try:
            data = base64.b64decode(embedding, validate=True)
            return numpy.frombuffer(data, "<f4")
        except (binascii.Error, ValueError) as error:
            raise Fatal(f"{who} gave a vector that is no base64 of 32-bit floats: {error}") from error
    with numpy.errstate(over="ignore"):
        return numpy.asarray(embedding, numpy.float64).astype(numpy.float32)


def _error_in(body: bytes) -> _Error:
    """OpenAI's form {"error": {"message", "param"}}; others write {"error": "…"}, {"message": "…"} or text."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Error()
    inner = found.get("error", found) if isinstance(found, dict) else found
    if isinstance(inner, str):
        return _Error(message=inner)
    if not isinstance(inner, dict):
        return _Error()
    message, param = inner.get("message"), inner.get("param")
    return _Error(message if isinstance(message, str) else None, param if isinstance(param, str) else None)
