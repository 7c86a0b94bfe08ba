"""Turns Postgres' text output into canonical JSON (see schemas/event.py), the same for the stream and for snapshots.

Both read text that the server printed under SESSION_SETTINGS, so equal rows give equal bytes. A converter maps the
text of one value to its JSON bytes; None as a converter means that the text is JSON already (integers).
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from pipeline.core.errors import Fatal, Poison

SESSION_SETTINGS = {
    "DateStyle": "ISO",
    "IntervalStyle": "iso_8601",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "xmlbinary": "base64",
    "client_encoding": "UTF8",
}
"""What every connection sets that reads values; converters rely on it."""

Converter = Callable[[bytes], bytes] | None

UNAVAILABLE = b'"__debezium_unavailable_value"'
"""JSON of a column that the source did not send; Debezium's placeholder."""

_encode = msgspec.json.Encoder().encode


class PostgresType(NamedTuple):
    """A row of pg_type, as far as conversion needs it. `kind` is typtype: b base, d domain, e enum, c composite, …"""

    oid: int
    name: str
    kind: str = "b"
    category: str = "U"
    element: int = 0
    base: int = 0
    modifier: int = -1
    delimiter: str = ","


def converter_for(type_oid: int, modifier: int, types: dict[int, PostgresType]) -> Converter:
    """The converter of a column. `types` must hold the type and what it is made of (see `parts_of`).

    Raises Fatal for a type that `types` does not hold: an unknown type is never guessed.
    """
    found = types.get(type_oid)
    if found is None:
        raise Fatal(f"The type with oid {type_oid} is not in the catalog; the connector can't convert its values.")
    if found.kind == "d":
        return converter_for(found.base, found.modifier if modifier == -1 else modifier, types)
    if found.category == "A" and found.element and found.name not in _VECTORS:
        return _array_converter(converter_for(found.element, modifier, types), found.delimiter.encode())
    if found.name in ("bit", "varbit"):
        return _boolean_bit if found.name == "bit" and modifier == 1 else quoted
    if found.name in _CONVERTERS and found.kind == "b":
        return _CONVERTERS[found.name]
    return text


def parts_of(type_oid: int, types: dict[int, PostgresType]) -> set[int]:
    """Oids that are needed to convert a type and that `types` lacks."""
    found = types.get(type_oid)
    if found is None:
        return {type_oid}
    below = [oid for oid in (found.element if found.category == "A" else 0, found.base) if oid]
    return set().union(*(parts_of(oid, types) for oid in below)) if below else set()


def canonical(value: bytes | None, converter: Converter) -> Any:
    """The canonical Python value of one text output, e.g. for an oracle that reads by SQL."""
    if value is None:
        return None
    return msgspec.json.decode(value if converter is None else converter(value))


def text(value: bytes) -> bytes:
    """Any text as a JSON string."""
    return _encode(value.decode())


def quoted(value: bytes) -> bytes:
    """Text that needs no escaping: digits, letters, punctuation other than quote and backslash."""
    return b'"%b"' % value


def _boolean(value: bytes) -> bytes:
    return b"true" if value == b"t" else b"false"


def _boolean_bit(value: bytes) -> bytes:
    return b"true" if value == b"1" else b"false"


def _floating(value: bytes) -> bytes:
    return value if value[-1] < 58 else b'"%b"' % value  # NaN and Infinity end in a letter


def _timestamp(value: bytes) -> bytes:
    return b'"%b"' % value.replace(b" ", b"T", 1) if value[0] < 58 and value[0] != 45 else b'"%b"' % value


def _timestamp_with_zone(value: bytes) -> bytes:
    if value[-3:] == b"+00" and value[10] == 32:
        return b'"%bT%bZ"' % (value[:10], value[11:-3])
    if value.endswith(b"infinity"):
        return b'"%b"' % value
    moment, _, era = value.partition(b"+00")  # a year above 9999, or before Christ
    return b'"%bZ%b"' % (moment.replace(b" ", b"T", 1), era)


def _bytes(value: bytes) -> bytes:
    return b'"%b"' % binascii.b2a_base64(binascii.unhexlify(value[2:]), newline=False)


def _point(value: bytes) -> bytes:
    x, y = value[1:-1].split(b",")
    return b'{"x":%b,"y":%b}' % (_floating(x), _floating(y))


_HSTORE_PAIR = re.compile(r'"((?:[^"\\]|\\.)*)"=>(?:NULL|"((?:[^"\\]|\\.)*)")(?:, )?', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def _hstore(value: bytes) -> bytes:
    pairs, at = {}, 0
    source = value.decode()
    while at < len(source):
        pair = _HSTORE_PAIR.match(source, at)
        if pair is None:
            raise Poison(f"An hstore value that can't be read at character {at}: {source[at : at + 40]!r}")
        name, content = pair.groups()
        pairs[_ESCAPED.sub(r"\1", name)] = None if content is None else _ESCAPED.sub(r"\1", content)
        at = pair.end()
    return _encode(pairs)


def _array_converter(element: Converter, delimiter: bytes) -> Callable[[bytes], bytes]:
    token = re.compile(rb'([{}%b])|"((?:[^"\\]|\\.)*)"|([^{}"%b]+)' % (delimiter, delimiter), re.DOTALL)

    def convert(value: bytes) -> bytes:
        at = value.index(b"={") + 1 if value[:1] == b"[" else 0  # other lower bounds than 1 are printed in front
        parts: list[bytes] = []
        while at < len(value):
            match = token.match(value, at)
            if match is None:
                raise Poison(f"An array value that can't be read at byte {at}: {value[at : at + 40]!r}")
            mark, quoted_item, item = match.groups()
            if mark is not None:
                parts.append(_BRACKETS.get(mark, b","))
            elif item == b"NULL":
                parts.append(b"null")
            else:
                content = _ESCAPED_BYTE.sub(rb"\1", quoted_item) if item is None else item
                parts.append(content if element is None else element(content))
            at = match.end()
        return b"".join(parts)

    return convert


_BRACKETS = {b"{": b"[", b"}": b"]"}
_ESCAPED_BYTE = re.compile(rb"\\(.)", re.DOTALL)

_VECTORS = ("int2vector", "oidvector")
"""Arrays by category, but printed without braces: `1 2 3`."""

_CONVERTERS: dict[str, Converter] = {
    "int2": None,
    "int4": None,
    "int8": None,
    "oid": None,
    "float4": _floating,
    "float8": _floating,
    "numeric": quoted,
    "bool": _boolean,
    "uuid": quoted,
    "date": quoted,
    "time": quoted,
    "timetz": quoted,
    "interval": quoted,
    "timestamp": _timestamp,
    "timestamptz": _timestamp_with_zone,
    "bytea": _bytes,
    "point": _point,
    "hstore": _hstore,
}
"""By type name; every other type is text as Postgres prints it."""

BUILT_IN_TYPES = {
    oid: PostgresType(oid, name)
    for oid, name in (
        (16, "bool"),
        (17, "bytea"),
        (20, "int8"),
        (21, "int2"),
        (23, "int4"),
        (25, "text"),
        (26, "oid"),
        (114, "json"),
        (600, "point"),
        (700, "float4"),
        (701, "float8"),
        (1042, "bpchar"),
        (1043, "varchar"),
        (1082, "date"),
        (1083, "time"),
        (1114, "timestamp"),
        (1184, "timestamptz"),
        (1186, "interval"),
        (1266, "timetz"),
        (1560, "bit"),
        (1562, "varbit"),
        (1700, "numeric"),
        (2950, "uuid"),
        (3802, "jsonb"),
    )
}
"""Types whose oids are the same on every server; the others are looked up in the catalog."""
