"""Declared column types: what a spec may say about a column where the wire alone is ambiguous.

Debezium without schemas writes a timestamp as a number and a numeric as base64: only the declaration says which.
"""

from __future__ import annotations

import re
from typing import Any

from schemas.yaml_file import suggestion

TYPE_NAMES = (
    "decimal", "numeric", "integer", "float", "number", "text", "boolean", "bytes", "bits", "json", "hstore", "uuid",
    "date", "date_ms", "time_ms", "time_us", "time_ns",
    "timestamp", "timestamp_ms", "timestamp_us", "timestamp_ns",
    "timestamptz", "timestamptz_ms", "timestamptz_us", "interval_us", "point", "frozen", "inet",
)  # fmt: skip
"""Also `decimal(precision,scale)` and `bits(length)`; `timestamp` is `timestamp_us`; `type[]` is an array."""

_SQL_NAMES = {
    "integer": ("int", "int2", "int4", "int8", "smallint", "bigint", "serial", "bigserial", "oid"),
    "float": ("real", "double", "double precision", "float4", "float8"),
    "text": ("char", "varchar", "character varying", "bpchar", "string", "citext", "enum"),
    "boolean": ("bool",),
    "bytes": ("bytea",),
    "bits": ("bit", "varbit", "bit varying"),
    "json": ("jsonb",),
    "decimal(19,2)": ("money",),
    "time_us": ("time", "time without time zone"),
    "timestamp": ("timestamp without time zone", "datetime"),
    "timestamptz": ("timestamp with time zone",),
    "interval_us": ("interval",),
}
_OF_SQL = {name: own for own, names in _SQL_NAMES.items() for name in names}

NESTING_MAX = 128
"""Levels of lists and objects in a value. A json column that is nested deeper stays text; a list or object that came
as such makes its record unreadable. Parsers and encoders have limits of their own, which depend on who calls them."""

_DECIMAL = re.compile(r"(?:decimal|numeric)\(\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\)")
_BITS = re.compile(r"bits\((\d{1,9})\)")


class UnknownValue:
    """Stands in a row for a value whose type nobody here knows: who needs the column refuses the row (promise 9), and
    who doesn't goes on. It is no JSON, so that it can't travel on by oversight."""

    __slots__ = ("type_name",)

    def __init__(self, type_name: str) -> None:
        self.type_name = type_name

    def refusal(self, column: str) -> str:
        """Why a row is refused, in words."""
        return f"column {column}: not a value of type {self.type_name} (this type is unknown here)"


class UnsureValue(UnknownValue):
    """A collection from Debezium's connector for Cassandra, which writes elements that were added, elements that were
    removed and a whole new collection alike. Of a frozen one it is the whole: then its column is declared so."""

    __slots__ = ()

    def refusal(self, column: str) -> str:
        return (
            f"column {column} holds a {self.type_name}, and Debezium's connector for Cassandra does not tell adding "
            "and removing elements from overwriting; declare it in the entity's types if it is frozen "
            f"(types: {{{column}: frozen}}), else leave it out"
        )


def nested_too_deep(value: Any, levels: int = NESTING_MAX) -> bool:
    """Whether lists and objects go more than `levels` deep."""
    if value.__class__ is dict:
        value = value.values()
    elif value.__class__ is not list:
        return False
    return levels == 0 or any(nested_too_deep(inner, levels - 1) for inner in value)


def scale_of(declared: str) -> int | None:
    """The scale of `decimal(precision,scale)`; None where it isn't given."""
    found = _DECIMAL.fullmatch(declared)
    return int(found.group(2)) if found else None


def is_decimal(declared: str | None) -> bool:
    """Whether a column is declared to hold exact decimals, which travel as text."""
    return declared is not None and declared.startswith(("decimal", "numeric")) and not declared.endswith("[]")


def length_of(declared: str) -> int | None:
    """The length of `bits(length)`; None where it isn't given."""
    found = _BITS.fullmatch(declared)
    return int(found.group(1)) if found else None


def element_of(declared: str) -> str | None:
    """The element type of `type[]`; None for what is no array."""
    return declared[:-2] if declared.endswith("[]") else None


def check_type(declared: str) -> str | None:
    """What is wrong with a declared type, in words; None when nothing is."""
    element = element_of(declared)
    if element is not None:
        return check_type(element)
    if declared in TYPE_NAMES or _DECIMAL.fullmatch(declared) or _BITS.fullmatch(declared):
        return None
    if declared.startswith(("decimal", "numeric")):
        return f"{declared!r}: write decimal(precision,scale), e.g. decimal(10,2)"
    own = _OF_SQL.get(declared.lower().partition("(")[0].strip())
    hint = f"; did you mean {own}?" if own else suggestion(declared, TYPE_NAMES)
    return f"no type {declared!r}{hint or '; types: ' + ', '.join(TYPE_NAMES)}"
