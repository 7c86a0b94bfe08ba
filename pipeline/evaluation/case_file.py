"""Files of cases, one JSON object a line → cases with their digests and lines, or every mistake of every line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.evaluation.digests import digest_of
from pipeline.evaluation.values import Case
from pipeline.guard.strict_json import InvalidOutput, parse
from schemas.context_schema import DIALECT
from schemas.yaml_file import mistakes_of

LINE_BYTES_MAX = 1_000_000
LINE_DEPTH_MAX = 64
MISTAKES_MAX = 200
"""Of one suite; what comes after is only counted."""
_ID_RULE = "an id has 1 to 200 letters, digits and . _ : / -, the first a letter or digit"


@dataclass(frozen=True, slots=True)
class CaseLine:
    """A case as it stands in a file. `digest`: of the JSON value as written, whatever its spaces and order of keys."""

    case: Case
    digest: str
    place: str


def read_cases(paths: Sequence[Path], mistakes: list[str]) -> list[CaseLine]:
    """Of all files, in their order; what is wrong is added to `mistakes`. Empty lines are passed over."""
    found: list[CaseLine] = []
    first: dict[str, str] = {}
    for path in paths:
        for place, line in _lines(path, mistakes):
            read = _read(line, place, mistakes)
            if read is None:
                continue
            other = first.setdefault(read.case.id, place)
            if other is not place:
                mistakes.append(
                    f"{place}: the id {read.case.id!r} stands at {other} already; ids are unique in a suite"
                )
                continue
            found.append(read)
    return found


def case_json_schema() -> dict[str, Any]:
    """What one line may hold, as to shape; which checks a kind can have and which files there are `read_suite` says."""
    return {"$schema": DIALECT, **Case.model_json_schema(), "title": "ctxpipe evaluation case"}


def printed_case_schema() -> str:
    """As it stands in schemas/eval_case.schema.json."""
    return json.dumps(case_json_schema(), indent=2, ensure_ascii=False) + "\n"


def _lines(path: Path, mistakes: list[str]) -> Iterator[tuple[str, str]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        mistakes.append(f"{path}: cannot be read: {error.strerror}")
        return
    for number, line in enumerate(content.split(b"\n"), 1):
        place = f"{path}:{number}"
        try:
            text = line.decode()
        except UnicodeDecodeError:
            mistakes.append(f"{place}: not UTF-8 text")
            continue
        if text.strip():
            yield place, text


def _read(line: str, place: str, mistakes: list[str]) -> CaseLine | None:
    try:
        value = parse(line, LINE_BYTES_MAX, LINE_DEPTH_MAX)
    except InvalidOutput as error:
        mistakes.append(f"{place}: {error.detail}; a case is one JSON object on one line")
        return None
    if not isinstance(value, dict):
        mistakes.append(f'{place}: a case is a JSON object such as {{"id": "…", "kind": "output", "expect": […]}}')
        return None
    try:
        case = Case.model_validate_json(line, strict=True)
    except ValidationError as error:
        name = f"case {value['id']!r}: " if isinstance(value.get("id"), str) else ""
        found = mistakes_of(error, Case, {})
        for mistake in found:
            if mistake.location == ("expect",) and any(
                "expect" in one.location[:1] and len(one.location) > 1 for one in found
            ):
                continue  # it is empty only because what stands in it is wrong
            where = ".".join(map(str, mistake.location))
            text = _ID_RULE if where == "id" and isinstance(value["id"], str) else mistake.text
            mistakes.append(f"{place}: {name}{where}{': ' if where else ''}{text}")
        return None
    return CaseLine(case, digest_of(value), place)
