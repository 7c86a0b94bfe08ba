"""Turns CQL values, as the server sent their bytes, into canonical JSON values (see schemas/event.py). Pure.

Bytes instead of the driver's objects: nothing is out of Python's range (years above 9999, durations), and the bytes are
at hand where they decide a tie (`raw_hex`). `CqlSession` (session.py) gives rows of them.
"""

from __future__ import annotations

import base64
import functools
import ipaddress
import math
import struct
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec

from connectors.cql.times import date_text, duration_text, time_text, timestamp_text, zigzag
from pipeline.core.errors import Fatal
from schemas.mutation import element_text


class CqlType(msgspec.Struct, frozen=True):
    """A CQL type: `name` as CQL spells it (int, text, list, tuple, vector, udt, …), `parameters` its element types.

    `fields` names a user-defined type's fields, `size` is a vector's dimension. Frozen or not makes no difference to a
    value's bytes; see schema.Column.multi_cell.
    """

    name: str
    parameters: tuple[CqlType, ...] = ()
    fields: tuple[str, ...] = ()
    size: int = 0

    def __str__(self) -> str:
        inner = ", ".join([*map(str, self.parameters), *([str(self.size)] if self.size else [])])
        return f"{self.name}<{inner}>" if inner else self.name


class UnknownType(Fatal):
    """A CQL type that nobody here can read; it is never guessed."""


Decoder = Callable[[bytes], Any]


def canonical(value: bytes | None, cql_type: CqlType) -> Any:
    """The canonical JSON value. Raises UnknownType.

    int, float, bool and text as they are (NaN, Infinity, -Infinity as text); decimals as text, varints as integers
    where 64 bits hold them; ISO times, UTC with Z; uuid and inet as text; blobs as base64; durations as ISO 8601;
    lists, sets (in Cassandra's order), tuples and vectors as lists; maps and user-defined types as objects.
    """
    return None if value is None else decoder(cql_type)(value)


@functools.lru_cache(maxsize=4096)
def decoder(cql_type: CqlType) -> Decoder:
    """`canonical` of one type, for many values. An empty value of a type that has none is an empty text."""
    name = cql_type.name
    if name in _TEXTS:
        return bytes.decode
    make = _COMPOSED.get(name)
    decode = make(cql_type) if make is not None else _PLAIN.get(name)
    if decode is None:
        raise UnknownType(f"The CQL type {cql_type} is unknown to this version; its values can't be read.")
    known = decode
    return lambda value: known(value) if value or name == "blob" else ""


def raw_hex(value: bytes | None, cql_type: CqlType) -> str | None:
    """`Cell.raw` of schemas/mutation.py: hex that compares as Cassandra compares the value's bytes, None where the
    canonical value does so itself. Timestamps as text do not: `…:00.25Z` is behind `…:00.251Z`."""
    if value is None or cql_type.name in _ORDERED:
        return None
    special = _RAW.get(cql_type.name)
    return value.hex() if special is None or not value else special(value)


def pieces(value: bytes) -> list[bytes]:
    """The elements of a list or set, as bytes."""
    count = _INT.unpack_from(value)[0]
    found, at = [], 4
    for _ in range(count):
        piece, at = _piece(value, at)
        found.append(piece or b"")
    return found


def pairs(value: bytes) -> list[tuple[bytes, bytes]]:
    """The entries of a map, as bytes."""
    count = _INT.unpack_from(value)[0]
    found, at = [], 4
    for _ in range(count):
        key, at = _piece(value, at)
        item, at = _piece(value, at)
        found.append((key or b"", item or b""))
    return found


def components(value: bytes, count: int) -> list[bytes | None]:
    """The fields of a tuple or a user-defined type; those that a value written earlier lacks are None."""
    found: list[bytes | None] = []
    at = 0
    while at < len(value):
        piece, at = _piece(value, at)
        found.append(piece)
    return found + [None] * (count - len(found))


_INT = struct.Struct(">i")
_LONG = struct.Struct(">q")
_FLOAT = struct.Struct(">f")
_DOUBLE = struct.Struct(">d")
_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1
_EXPONENT_PLAIN_MAX = 1000
_TEXTS = frozenset({"text", "varchar", "ascii"})
_FIXED_BYTES = {
    "boolean": 1,
    "int": 4,
    "float": 4,
    "bigint": 8,
    "counter": 8,
    "double": 8,
    "timestamp": 8,
    "uuid": 16,
    "timeuuid": 16,
}
"""A vector of these holds its elements without their lengths."""


def _piece(value: bytes, at: int) -> tuple[bytes | None, int]:
    size = _INT.unpack_from(value, at)[0]
    at += 4
    return (None, at) if size < 0 else (value[at : at + size], at + size)


def _integer(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True)


def _boolean(value: bytes) -> bool:
    return value != b"\x00"


def _double(value: bytes) -> Any:
    return _finite(_DOUBLE.unpack(value)[0])


def _float(value: bytes) -> Any:
    """The shortest number that means the same in 32 bits, as CQL shows it: 0.1 and not 0.10000000149011612."""
    number = _FLOAT.unpack(value)[0]
    if not math.isfinite(number):
        return _finite(number)
    for digits in range(6, 9):
        shorter = float(f"{number:.{digits}g}")
        try:
            if _FLOAT.pack(shorter) == value:
                return shorter
        except OverflowError:
            continue
    return float(f"{number:.9g}")


def _finite(number: float) -> Any:
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _varint(value: bytes) -> Any:
    number = _integer(value)
    return number if _INT64_MIN <= number <= _INT64_MAX else str(number)


def _decimal(value: bytes) -> str:
    scale = _INT.unpack_from(value)[0]
    unscaled = _integer(value[4:])
    number = Decimal((int(unscaled < 0), tuple(map(int, str(abs(unscaled)))), -scale))
    return f"{number:f}" if abs(scale) <= _EXPONENT_PLAIN_MAX else str(number)


def _uuid(value: bytes) -> str:
    return str(uuid.UUID(bytes=value))


def _inet(value: bytes) -> str:
    return str(ipaddress.ip_address(value))


def _blob(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _duration(value: bytes) -> str:
    numbers, at = [], 0
    for _ in range(3):
        number, at = _unsigned(value, at)
        numbers.append(zigzag(number))
    months, days, nanoseconds = numbers
    return duration_text(months, days, nanoseconds)


def _unsigned(value: bytes, at: int) -> tuple[int, int]:
    """Cassandra's variable-length integer: as many leading ones in the first byte as bytes follow."""
    first = value[at]
    extra = 8 - (first ^ 0xFF).bit_length()
    kept = first & (0xFF >> extra) if extra < 8 else 0
    return (kept << (8 * extra)) | int.from_bytes(value[at + 1 : at + 1 + extra], "big"), at + 1 + extra


def _list(cql_type: CqlType) -> Decoder:
    element = decoder(cql_type.parameters[0])
    return lambda value: [element(piece) for piece in pieces(value)]


def _map(cql_type: CqlType) -> Decoder:
    key, item = map(decoder, cql_type.parameters)
    return lambda value: {element_text(key(name)): item(found) for name, found in pairs(value)}


def _tuple(cql_type: CqlType) -> Decoder:
    decoders = [decoder(part) for part in cql_type.parameters]
    return lambda value: [
        None if part is None else decode(part)
        for decode, part in zip(decoders, components(value, len(decoders)), strict=False)
    ]


def _udt(cql_type: CqlType) -> Decoder:
    parts = _tuple(cql_type)
    return lambda value: dict(zip(cql_type.fields, parts(value), strict=False))


def _vector(cql_type: CqlType) -> Decoder:
    element, fixed = decoder(cql_type.parameters[0]), _FIXED_BYTES.get(cql_type.parameters[0].name)

    def decode(value: bytes) -> list[Any]:
        found, at = [], 0
        for _ in range(cql_type.size):
            size, at = (fixed, at) if fixed is not None else _unsigned(value, at)
            found.append(element(value[at : at + size]))
            at += size
        return found

    return decode


def _raw_number(value: bytes) -> str | None:
    number = (_DOUBLE if len(value) == 8 else _FLOAT).unpack(value)[0]
    return None if math.isfinite(number) else value.hex()


def _raw_date(value: bytes) -> str | None:
    """Unsigned, so in order of time; only years that ISO writes with a sign need their place among the texts."""
    day = int.from_bytes(value, "big") - (1 << 31)
    if _YEAR_0_DAY <= day < _YEAR_10000_DAY:
        return None
    return ("2f" if day < 0 else "3a") + value.hex()


_YEAR_10000_DAY = 2_932_897
_YEAR_0_DAY = -719_528

_PLAIN: dict[str, Decoder] = {
    "tinyint": _integer,
    "smallint": _integer,
    "int": _integer,
    "bigint": _integer,
    "counter": _integer,
    "varint": _varint,
    "boolean": _boolean,
    "float": _float,
    "double": _double,
    "decimal": _decimal,
    "timestamp": lambda value: timestamp_text(_integer(value)),
    "date": lambda value: date_text(int.from_bytes(value, "big") - (1 << 31)),
    "time": lambda value: time_text(_integer(value)),
    "uuid": _uuid,
    "timeuuid": _uuid,
    "inet": _inet,
    "blob": _blob,
    "duration": _duration,
}
_COMPOSED: dict[str, Callable[[CqlType], Decoder]] = {
    "list": _list,
    "set": _list,
    "map": _map,
    "tuple": _tuple,
    "udt": _udt,
    "vector": _vector,
}
_ORDERED = _TEXTS | {"tinyint", "smallint", "int", "bigint", "counter", "boolean", "time", "uuid", "timeuuid"}
_RAW: dict[str, Callable[[bytes], str | None]] = {
    "float": _raw_number,
    "double": _raw_number,
    "date": _raw_date,
}
