"""Files of a suite that hold context: logs of records, and fixed bundles. Read whole, all their mistakes at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

import msgspec

from pipeline.evaluation.errors import SuiteError
from schemas.record import Record

MISTAKES_TOLD_MAX = 20
_NULL = msgspec.Raw(b"null")

Line = TypeVar("Line", bound=msgspec.Struct)


class WorldError(SuiteError):
    """The world of a case can't be made: what is wrong with its files, a sentence each; of many the first ones."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        told = list(mistakes[:MISTAKES_TOLD_MAX])
        if len(mistakes) > len(told):
            told.append(f"… and {len(mistakes) - len(told)} more")
        super().__init__(told)


class _LogLine(msgspec.Struct, forbid_unknown_fields=True):
    """`key` and `value` are JSON, and travel as the very bytes that stand in the file. `key_text` and `value_text` take
    their place for records that are no JSON."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int = 0
    key: msgspec.Raw = _NULL
    value: msgspec.Raw = _NULL
    key_text: str | None = None
    value_text: str | None = None


class BundleLine(msgspec.Struct, forbid_unknown_fields=True):
    """One bundle as a reader gets it. `as_of_us`: up to when its sources' changes are in it, one time or one by source;
    None: not said. `fragments`: path of a linked section → the key that it is kept under, None where it links to
    nothing. `tenant`: whose it is, where the context keeps tenants apart."""

    context: str
    key: str
    data: msgspec.Raw
    as_of_us: int | dict[str, int | None] | None = None
    fragments: dict[str, str | None] = {}
    tenant: str | None = None


def read_log(path: Path, name: str) -> list[Record]:
    """In the order of the file, offsets of each partition ascending. `name` is what messages call the file.

    Raises WorldError.
    """
    mistakes: list[str] = []
    records: list[Record] = []
    last: dict[tuple[str, int], int] = {}
    for number, line in _lines(path, name, _LogLine, mistakes):
        place = (line.topic, line.partition)
        if line.offset <= last.get(place, -1):
            mistakes.append(
                f"{name}:{number}: offset {line.offset} of {line.topic}/{line.partition} stands behind "
                f"{last[place]}; a log has each offset once, ascending"
            )
        last[place] = line.offset
        key, value = _bytes(line.key, line.key_text), _bytes(line.value, line.value_text)
        records.append(Record(line.topic, line.partition, line.offset, key, value, line.timestamp_ms))
    if mistakes:
        raise WorldError(mistakes)
    return records


def read_bundles(path: Path, name: str) -> list[tuple[int, BundleLine]]:
    """With their line numbers. Raises WorldError for what no context could take."""
    mistakes: list[str] = []
    found = list(_lines(path, name, BundleLine, mistakes))
    for number, line in found:
        if not bytes(line.data).startswith(b"{"):
            mistakes.append(f"{name}:{number}: 'data' is the bundle, a JSON object")
    if mistakes:
        raise WorldError(mistakes)
    return found


def meant(name: str, known: Sequence[str] | Mapping[str, object]) -> str:
    """A hint for a name that nobody knows."""
    near = get_close_matches(name, list(known), 1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known)) or 'none'}"


def _lines(path: Path, name: str, kind: type[Line], mistakes: list[str]) -> Iterator[tuple[int, Line]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WorldError([f"{name}: can't be read: {error.strerror or error}"]) from None
    decode = msgspec.json.Decoder(kind).decode
    for number, text in enumerate(data.split(b"\n"), 1):
        if not text.strip():
            continue
        try:
            yield number, decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            mistakes.append(f"{name}:{number}: {_told(error, kind)}")


def _told(error: Exception, kind: type[msgspec.Struct]) -> str:
    text = str(error)
    if "unknown field" in text:
        unknown = text.split("`")[1]
        return f"{unknown!r} is no part of such a line; {meant(unknown, kind.__struct_fields__)}"
    return text


def _bytes(raw: msgspec.Raw, text: str | None) -> bytes | None:
    if text is not None:
        return text.encode("utf-8", "surrogatepass")
    body = bytes(raw)
    return None if body == b"null" else body
