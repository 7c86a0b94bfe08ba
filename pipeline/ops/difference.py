"""Where two bundles differ, field by field: numbers by value, everything else exactly, order included."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

ABSENT = "(absent)"
SHOWN_CHARACTERS_MAX = 200
INTEGER_DIGITS_MAX = 4_000

_encode = msgspec.json.Encoder(decimal_format="number").encode


class Difference(NamedTuple):
    """`path` such as `plane.recent[2].id` ("" is the whole bundle); both sides as short JSON text or ABSENT."""

    path: str
    source: str
    stored: str

    @property
    def top(self) -> str:
        """The field or section of the bundle in which it lies."""
        return self.path.partition(".")[0].partition("[")[0]


def differences(source: bytes | None, stored: bytes | None) -> list[Difference]:
    """Empty when equal. None means that there is no bundle; bytes that are not JSON differ as a whole."""
    if source == stored:
        return []
    if source is None or stored is None:
        return [Difference("", _whole(source), _whole(stored))]
    try:
        actual = _decode(stored)
    except ValueError:
        return [Difference("", _whole(source), f"not JSON: {_short(stored.decode(errors='replace'))}")]
    return list(_compare("", _decode(source), actual))


def _decode(text: bytes) -> Any:
    return json.loads(text, parse_float=Decimal, parse_int=_integer)


def _integer(text: str) -> int | Decimal:
    """Python makes no integers of more than 4300 digits from text."""
    return int(text) if len(text) <= INTEGER_DIGITS_MAX else Decimal(text)


def _compare(path: str, source: Any, stored: Any) -> Iterator[Difference]:
    if isinstance(source, dict) and isinstance(stored, dict):
        yield from _compare_objects(path, source, stored)
    elif isinstance(source, list) and isinstance(stored, list):
        for index in range(max(len(source), len(stored))):
            place = f"{path}[{index}]"
            if index >= len(source):
                yield Difference(place, ABSENT, _json(stored[index]))
            elif index >= len(stored):
                yield Difference(place, _json(source[index]), ABSENT)
            else:
                yield from _compare(place, source[index], stored[index])
    elif not _same(source, stored):
        yield Difference(path, _json(source), _json(stored))


def _compare_objects(path: str, source: dict[str, Any], stored: dict[str, Any]) -> Iterator[Difference]:
    for name in [*source, *(name for name in stored if name not in source)]:
        place = f"{path}.{name}" if path else name
        if name not in stored:
            yield Difference(place, _json(source[name]), ABSENT)
        elif name not in source:
            yield Difference(place, ABSENT, _json(stored[name]))
        else:
            yield from _compare(place, source[name], stored[name])
    if source.keys() == stored.keys() and list(source) != list(stored):
        yield Difference(path, f"order {', '.join(source)}", f"order {', '.join(stored)}")


def _same(source: Any, stored: Any) -> bool:
    if isinstance(source, bool) or isinstance(stored, bool):
        return source is stored
    if isinstance(source, int | Decimal) and isinstance(stored, int | Decimal):
        return source == stored
    return type(source) is type(stored) and bool(source == stored)


def _whole(bundle: bytes | None) -> str:
    return ABSENT if bundle is None else _short(bundle.decode(errors="replace"))


def _json(value: Any) -> str:
    return _short(_encode(value).decode())


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS_MAX else text[: SHOWN_CHARACTERS_MAX - 1] + "…"
