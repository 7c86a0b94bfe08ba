"""Postgres text output → canonical values, for the reader behind `ctxpipe verify`.

It is written apart from the converters of the replication path on purpose: an oracle that shared them would share
their mistakes.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Any

Convert = Callable[[str], Any]

_SPECIAL_FLOATS = frozenset({"NaN", "Infinity", "-Infinity"})
_HSTORE_PAIR = re.compile(r'"((?:[^"\\]|\\.)*)"=>(?:"((?:[^"\\]|\\.)*)"|NULL)', re.DOTALL)


def converter(type_name: str, bit_length: int | None = None) -> Convert:
    """For a type by the name that format_type gives it without modifiers, e.g. "timestamp with time zone"."""
    if type_name.endswith("[]"):
        element = converter(type_name[:-2], bit_length)
        delimiter = ";" if type_name == "box[]" else ","
        return lambda text: _array(text, element, delimiter)
    if type_name == "bit" and bit_length == 1:
        return lambda text: text == "1"
    return _CONVERTERS.get(type_name, str)


def _float(text: str) -> int | float | str:
    """The JSON number that the text spells: Postgres prints whole floats without a fraction."""
    if text in _SPECIAL_FLOATS:
        return text
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _bytea(text: str) -> str:
    return base64.b64encode(bytes.fromhex(text[2:])).decode()


def _timestamp(text: str) -> str:
    return text.replace(" ", "T", 1)


def _timestamp_utc(text: str) -> str:
    return text.replace(" ", "T", 1).replace("+00", "Z", 1) if "infinity" not in text else text


def _point(text: str) -> dict[str, Any]:
    x, y = text.strip("()").split(",")
    return {"x": _float(x), "y": _float(y)}


def _hstore(text: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for pair in _HSTORE_PAIR.finditer(text):
        key, value = pair.groups()
        found[_unescaped(key)] = None if value is None else _unescaped(value)
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


_CONVERTERS: dict[str, Convert] = {
    "smallint": int,
    "integer": int,
    "bigint": int,
    "oid": int,
    "real": _float,
    "double precision": _float,
    "boolean": lambda text: text == "t",
    "bytea": _bytea,
    "timestamp without time zone": _timestamp,
    "timestamp with time zone": _timestamp_utc,
    "point": _point,
    "hstore": _hstore,
}


def _array(text: str, element: Convert, delimiter: str) -> list[Any]:
    """`{1,NULL,"a b",{…}}`; bounds written before it (`[0:1]={…}`) are dropped."""
    start = text.index("{")
    items, end = _elements(text, start, element, delimiter)
    if end != len(text):
        raise ValueError(f"not an array: {text[:80]!r}")
    return items


def _elements(text: str, start: int, element: Convert, delimiter: str) -> tuple[list[Any], int]:
    items: list[Any] = []
    position = start + 1
    while text[position] != "}":
        if text[position] == delimiter:
            position += 1
        item: Any
        if text[position] == "{":
            item, position = _elements(text, position, element, delimiter)
        elif text[position] == '"':
            item, position = _quoted(text, position, element)
        else:
            end = position
            while text[end] not in (delimiter, "}"):
                end += 1
            word, position = text[position:end], end
            item = None if word == "NULL" else element(word)
        items.append(item)
    return items, position + 1


def _quoted(text: str, start: int, element: Convert) -> tuple[Any, int]:
    characters = []
    position = start + 1
    while text[position] != '"':
        if text[position] == "\\":
            position += 1
        characters.append(text[position])
        position += 1
    return element("".join(characters)), position + 1
