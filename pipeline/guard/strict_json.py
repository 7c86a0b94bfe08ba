"""Text of a model → a JSON value, or the one reason why it is none: strict, with limits before anything is parsed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from pipeline.core.errors import Poison

BYTES_MAX = 256 * 1024
DEPTH_MAX = 32
NUMBER_CHARACTERS_MAX = 100
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.|\\\Z)*+(?:"|\Z)|[\[{]|[\]}]', re.DOTALL)
"""Strings, closed or cut, and brackets outside of them; linear in whatever it is given."""
_FENCE = re.compile(r"```[A-Za-z0-9_-]*[ \t]*\r?\n(.*?)```", re.DOTALL)
_DETAIL_CHARACTERS_MAX = 300


class InvalidOutput(Poison):
    """`kind` is a label of metrics; the text says what is wrong, in words that a model can mend it by."""

    def __init__(self, kind: str, detail: str) -> None:
        self.kind, self.detail = kind, detail[:_DETAIL_CHARACTERS_MAX]
        super().__init__(self.detail)


def parse(text: str, bytes_max: int = BYTES_MAX, depth_max: int = DEPTH_MAX) -> Any:
    """Raises InvalidOutput of the kinds too_large, too_deep, duplicate_key, not_finite, bad_text, not_json."""
    check_text(text, bytes_max)
    if text.count("{") + text.count("[") > depth_max and any(depth > depth_max for depth in _depths(text)):
        raise InvalidOutput("too_deep", f"it is nested deeper than {depth_max} levels")
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise InvalidOutput("not_json", f"it is no JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise InvalidOutput("too_deep", "it is nested too deeply") from None
    if "\\u" in text:
        _check_escapes(value)
    return value


def check_text(text: str, bytes_max: int) -> None:
    """Raises InvalidOutput: too_large, bad_text (half a surrogate pair, which no encoding can write)."""
    if len(text) > bytes_max:
        raise InvalidOutput("too_large", f"it has more than {bytes_max} bytes")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidOutput("bad_text", "it holds half of a surrogate pair") from None
    if size > bytes_max:
        raise InvalidOutput("too_large", f"it has {size} bytes, at most {bytes_max} are taken")


def mended(text: str) -> str | None:
    """The one JSON value in a text, without the fence or the words around it; None where there is none, or more than
    one: choosing would be guessing. Nothing inside the value is ever changed."""
    fences = _FENCE.findall(text)
    if len(fences) > 1:
        return None
    spans = _balanced(fences[0] if fences else text)
    return spans[0] if spans is not None and len(spans) == 1 else None


def _balanced(text: str) -> list[str] | None:
    """The outermost objects and arrays; None where brackets don't match: something is cut or mixed up."""
    found: list[str] = []
    opened: list[str] = []
    begin = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in "[{":
            if not opened:
                begin = match.start()
            opened.append("]" if token == "[" else "}")
        elif token in "]}":
            if not opened or opened.pop() != token:
                return None
            if not opened:
                found.append(text[begin : match.end()])
    return None if opened else found


def _depths(text: str) -> Iterator[int]:
    depth = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in "[{":
            depth += 1
            yield depth
        elif token in "]}":
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidOutput("duplicate_key", f"the key {twice[:60]!r} stands twice in one object")
    return value


def _constant(name: str) -> NoReturn:
    raise InvalidOutput("not_finite", f"{name} is no number of JSON")


def _float(text: str) -> float:
    _check_number(text)
    value = float(text)
    if not math.isfinite(value):
        raise InvalidOutput("not_finite", f"the number {text} is too large")
    return value


def _int(text: str) -> int:
    _check_number(text)
    return int(text)


def _check_number(text: str) -> None:
    if len(text) > NUMBER_CHARACTERS_MAX:
        raise InvalidOutput("not_finite", f"a number has more than {NUMBER_CHARACTERS_MAX} characters")


def _check_escapes(value: Any) -> None:
    """Escapes can write what no encoding can."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidOutput("bad_text", "a string holds half of a surrogate pair") from None


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int)
