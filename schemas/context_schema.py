"""The published JSON Schema of context files, made from the models and their short forms.

`schemas/context.schema.json` is its printed form (`ctxpipe schema > schemas/context.schema.json`), for editors.
"""

from __future__ import annotations

import json
import typing
from typing import Any

from schemas.context import AggregateFunction, ContextSpec

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_WITHOUT_COLUMN = ("count", "share")


def context_json_schema() -> dict[str, Any]:
    """What `load_context` accepts as to shape; names that must exist and the like only `load_context` checks."""
    schema = ContextSpec.model_json_schema()
    definitions = schema["$defs"]
    definitions["FieldSpec"] = _field(definitions["FieldSpec"])
    definitions["Aggregate"] = _aggregate(definitions["Aggregate"])
    return {"$schema": DIALECT, **schema, "title": "ctxpipe context"}


def printed_schema() -> str:
    """As it stands in the file."""
    return json.dumps(context_json_schema(), indent=2, ensure_ascii=False) + "\n"


def _field(written_out: dict[str, Any]) -> dict[str, Any]:
    """A column's name alone, or the object; column and value exclude each other."""
    name = {key: value for key, value in written_out["properties"]["name"].items() if key != "title"}
    given = [{"required": [part], "properties": {part: {"type": "string"}}} for part in _EITHER]
    neither = {"not": {"anyOf": [{"required": [part]} for part in _EITHER]}}
    return {"description": written_out["description"], "anyOf": [name, {**written_out, "oneOf": [neither, *given]}]}


_EITHER = ("column", "value")


def _aggregate(written_out: dict[str, Any]) -> dict[str, Any]:
    """`count`, `{avg: column, …}`, or the object with `function`."""
    properties = written_out["properties"]
    rest = {name: properties[name] for name in ("by", "where", "round")}
    forms: list[dict[str, Any]] = [{"enum": list(_WITHOUT_COLUMN)}, _complete(written_out)]
    for function in typing.get_args(AggregateFunction):
        column: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 128}
        if function in _WITHOUT_COLUMN:
            column = {"anyOf": [column, {"type": "null"}, {"const": True}]}
        short = {"type": "object", "additionalProperties": False, "properties": {function: column, **rest}}
        forms.append({**short, "required": [function, "by"] if function == "latest" else [function]})
    return {"description": written_out["description"], "anyOf": forms}


def _complete(written_out: dict[str, Any]) -> dict[str, Any]:
    needs_column = {"properties": {"function": {"enum": list(_WITHOUT_COLUMN)}}}
    by = {"if": {"properties": {"function": {"const": "latest"}}}, "then": {"required": ["by"]}}
    return {**written_out, "anyOf": [needs_column, {"required": ["column"]}], **by}
