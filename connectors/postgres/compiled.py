"""Writes, per table, the Python function that turns a row's bytes into JSON fragments in one pass.

A loop over columns that calls a converter for each value costs about twice as much; capture speed is a promise (see
`ctxpipe bench capture`). The text of the function holds only column numbers: names and values never become code.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import msgspec

from connectors.postgres.values import UNAVAILABLE, Converter, quoted, text
from pipeline.core.errors import Fatal

RowParser = Callable[[bytes, int], tuple[tuple[bytes, ...], int]]
"""(message, where its tuple begins) → (one JSON fragment per column, where the tuple ends)."""

_COLUMN = """
    kind = data[at]
    if kind == 116:
        start = at + 5
        at = start + length(data, at + 1)[0]
        f{number} = {conversion}
    elif kind == 110:
        f{number} = b"null"
        at += 1
    elif kind == 117:
        f{number} = unavailable
        at += 1
    else:
        unknown(kind)
"""

_FUNCTION = """
def parse(data, at):
    if count(data, at)[0] != {columns}:
        wrong_count(count(data, at)[0], {columns})
    at += 2
{body}
    return ({fragments},), at
"""


def compile_row_parser(converters: Sequence[Converter]) -> RowParser:
    """For rows with these columns. The parser raises Fatal, struct.error or IndexError on bytes that are no such row,
    and what a converter raises.
    """
    names: dict[str, object] = {
        "length": struct.Struct(">I").unpack_from,
        "count": struct.Struct(">H").unpack_from,
        "unavailable": UNAVAILABLE,
        "encode": msgspec.json.Encoder().encode,
        "unknown": _unknown,
        "wrong_count": _wrong_count,
    }
    body = ""
    for number, converter in enumerate(converters):
        names[f"convert{number}"] = converter
        body += _COLUMN.format(number=number, conversion=_conversion(number, converter))
    fragments = ", ".join(f"f{number}" for number in range(len(converters))) or "*()"
    source = _FUNCTION.format(columns=len(converters), body=body, fragments=fragments)
    exec(compile(source, "<row parser>", "exec"), names)
    parser: RowParser = names["parse"]  # type: ignore[assignment]
    return parser


def _conversion(number: int, converter: Converter) -> str:
    """The common conversions in place, without a call."""
    if converter is None:
        return "data[start:at]"
    if converter is quoted:
        return "b'\"%b\"' % data[start:at]"
    if converter is text:
        return "encode(data[start:at].decode())"
    return f"convert{number}(data[start:at])"


def _unknown(kind: int) -> None:
    raise Fatal(f"The replication stream sent a value of unknown kind '{chr(kind)}'; only text is asked for.")


def _wrong_count(found: int, expected: int) -> None:
    raise Fatal(f"The replication stream sent a row of {found} columns where its relation has {expected}.")
