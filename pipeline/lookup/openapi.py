"""The HTTP interface as OpenAPI 3.1: what clients are made from, and what the tests throw at a server.

Written by hand beside the routes, so that it says what is promised; a test sends what it allows and what it does not.
"""

from __future__ import annotations

from typing import Any

from pipeline.lookup.bundle_ids import ID_CHARACTERS_MAX
from pipeline.lookup.keys import KEY_CHARACTERS_MAX, KEYS_MAX
from pipeline.lookup.options import AGE_MS_MAX, BUDGET_MS_MAX, BUDGET_MS_MIN, TOKENS_MAX
from pipeline.lookup.search_request import BUDGET_MS_MAX as SEARCH_BUDGET_MS_MAX
from pipeline.lookup.search_request import K_MAX, MODES

Schema = dict[str, Any]

STREAMED_KEYS_MAX = 100_000
_TEXT: Schema = {"type": "string"}
_TIME: Schema = {"type": ["string", "null"], "format": "date-time"}
_NUMBER: Schema = {"type": "number"}
_ID: Schema = {"type": "string", "pattern": "^[A-Za-z0-9_-]+$", "maxLength": ID_CHARACTERS_MAX}
_POSITIONS: Schema = {"type": "array", "items": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"}, "maxItems": 16}


def document(version: str) -> dict[str, Any]:
    """`version` of ctxpipe."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ctxpipe",
            "version": version,
            "description": "Context bundles by key and by meaning, inside a budget and with their age.",
        },
        "paths": {
            "/v1/contexts": {
                "get": _guarded(_operation("listContexts", "The contexts that the caller may read", "Contexts"))
            },
            "/v1/contexts/{context}/{key}": {"get": _get()},
            "/v1/contexts/{context}:batchGet": {"post": _batch_get()},
            "/v1/contexts/{context}:search": {"post": _search()},
            "/v1/contexts/{context}:fields": {"get": _fields()},
            "/v1/contexts/{context}:byId/{id}": {"get": _by_id("pastBundle", "What an answer held", "PastBundle")},
            "/v1/contexts/{context}:lineage/{key}": {"get": _lineage()},
            "/v1/contexts/{context}:lineageById/{id}": {
                "get": _by_id("pastLineage", "Where the values of an answer came from", "Lineage")
            },
            "/livez": {"get": _with_problems(_operation("live", "The process runs", "State"), 503)},
            "/startupz": {"get": _with_problems(_operation("started", "It has begun its work", "State"), 503)},
            "/readyz": {"get": _with_problems(_operation("ready", "Lookups can be answered", "State"), 503)},
        },
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key or a JSON Web Token."},
            },
        },
    }


def _get() -> dict[str, Any]:
    operation = _operation("getBundle", "The bundle of one key", "Answer")
    operation["parameters"] = [_in_path("context"), _in_path("key"), *_options(), _header("If-None-Match", _TEXT)]
    operation["responses"]["304"] = {"description": "The bundle is the one of If-None-Match."}
    operation["responses"]["404"] = {
        "description": "No such bundle (an Answer whose status is missing), or no such context (a Problem).",
        "content": {"application/json": _of("Answer"), "application/problem+json": _of("Problem")},
    }
    return _guarded(_with_problems(operation, 400, 503))


def _by_id(name: str, summary: str, answer: str) -> dict[str, Any]:
    operation = _operation(name, summary, answer)
    operation["description"] = (
        "`id` is that of an answer; it leads back to its bytes for as long as the context's history is kept. 404 where "
        "it is no longer, and for what the caller may not see."
    )
    operation["parameters"] = [_in_path("context"), {**_in_path("id"), "schema": _ID}]
    return _guarded(_with_problems(operation, 400, 404, 503))


def _lineage() -> dict[str, Any]:
    operation = _operation("getLineage", "Where the values of a bundle come from", "Lineage")
    operation["description"] = (
        "Of each value the table, the column or expression, the row and its position in the source. Offsets in Kafka "
        "are told by `ctxpipe get --lineage` alone, which searches the topics for them."
    )
    operation["parameters"] = [_in_path("context"), _in_path("key")]
    return _guarded(_with_problems(operation, 400, 404, 503))


def _batch_get() -> dict[str, Any]:
    operation = _operation("batchGet", "The bundles of many keys, in their order", "Answers")
    operation["description"] = (
        f"Up to {KEYS_MAX:,} keys. With Accept: application/x-ndjson up to {STREAMED_KEYS_MAX:,}, one answer per line "
        "as they come; the budget then counts for each part of the batch."
    )
    operation["parameters"] = [_in_path("context"), *_options()]
    operation["requestBody"] = {"required": True, "content": {"application/json": _of("Batch")}}
    operation["responses"]["200"]["content"]["application/x-ndjson"] = {"schema": _TEXT}
    return _guarded(_with_problems(operation, 400, 404, 413, 503))


def _search() -> dict[str, Any]:
    operation = _operation("search", "The bundles nearest to a text, a vector or a bundle", "SearchAnswer")
    operation["parameters"] = [_in_path("context")]
    operation["requestBody"] = {"required": True, "content": {"application/json": _of("Search")}}
    return _guarded(_with_problems(operation, 400, 404, 409, 413, 501, 503))


def _fields() -> dict[str, Any]:
    operation = _operation("listFields", "Where every field of a context comes from", "Fields")
    operation["parameters"] = [_in_path("context")]
    return _guarded(_with_problems(operation, 404))


def _operation(name: str, summary: str, answer: str) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": summary, "content": {"application/json": _of(answer)}}},
    }


def _guarded(operation: dict[str, Any]) -> dict[str, Any]:
    """A server without a section `access` asks for nothing."""
    operation["security"] = [{}, {"apiKey": []}, {"bearer": []}]
    return _with_problems(operation, 401, 403)


def _with_problems(operation: dict[str, Any], *statuses: int) -> dict[str, Any]:
    told = {
        400: "What is wrong with the request, all of it.",
        401: "No credential, or one that is not valid here.",
        403: "The credential lacks a scope, or does not show what was asked for.",
        404: "No such context or bundle.",
        409: "Another space than the one that was asked for answers.",
        413: "The body is too large.",
        501: "This server answers no searches.",
        503: "The store does not answer in time.",
    }
    for status in statuses:
        problem = {"description": told[status], "content": {"application/problem+json": _of("Problem")}}
        operation["responses"].setdefault(str(status), problem)
    return operation


def _options() -> list[dict[str, Any]]:
    budget = {**_NUMBER, "minimum": BUDGET_MS_MIN, "maximum": BUDGET_MS_MAX}
    paths = {"type": "array", "items": {"type": "string", "minLength": 1, "pattern": r"^[^,\s]+$"}, "maxItems": 100}
    return [
        _query("budget_ms", budget, "How long the answer may take; default: the context's."),
        _query(
            "max_age_ms", {**_NUMBER, "minimum": 0, "maximum": AGE_MS_MAX}, "What is fresh; default: the context's."
        ),
        _query("sections", paths, "Only these sections, beside the bundle's own fields.", explode=False),
        _query("fields", paths, "Only these fields, with dots for those of sections.", explode=False),
        _query("token_budget", {"type": "integer", "minimum": 1, "maximum": TOKENS_MAX}, "At most so many tokens."),
        _query("position", _POSITIONS, "What the answer must have seen: `position` of answers, or `ctxpipe position`."),
        _header("X-Request-Timeout-Ms", budget),
        _header("grpc-timeout", {"type": "string", "pattern": "^[0-9]{1,8}[HMSmun]$"}),
    ]


def _in_path(name: str) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1, "maxLength": KEY_CHARACTERS_MAX}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query(name: str, schema: Schema, told: str, explode: bool = True) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": told, "explode": explode}


def _header(name: str, schema: Schema) -> dict[str, Any]:
    return {"name": name, "in": "header", "schema": schema}


def _of(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{name}"}}


def _object(properties: dict[str, Schema], *optional: str, closed: bool = False) -> Schema:
    required = [name for name in properties if name not in optional]
    found: Schema = {"type": "object", "properties": properties, "required": required}
    return {**found, "additionalProperties": False} if closed else found


_NOT_REACHED: Schema = {"type": "array", "items": _object({"source": _TEXT, "position": _TEXT, "reason": _TEXT})}
_ORIGINS: Schema = {
    "type": "array",
    "items": _object({"path": _TEXT, "kind": _TEXT, "entity": _TEXT, "source": _TEXT, "table": _TEXT}),
}


def _schemas() -> dict[str, Schema]:
    by_source = {"type": "object", "additionalProperties": _TIME}
    bundle = {"type": ["object", "null"]}
    answer = {
        "context": _TEXT,
        "key": _TEXT,
        "status": {"enum": ["fresh", "stale", "partial", "missing", "fallback"]},
        "as_of": by_source,
        "age_ms": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
        "spec_version": {"type": "integer"},
        "hash": {"type": ["string", "null"]},
        "sections": {"type": "object", "additionalProperties": _object({"as_of": _TIME})},
        "left_out": {"type": "array", "items": _object({"section": _TEXT, "reason": _TEXT})},
        "rung": {"enum": ["near", "store", "replica", "last_known", "default"]},
        "id": _TEXT,
        "tokens": {"type": "integer"},
        "position": {"type": "object", "additionalProperties": _TEXT},
        "not_reached": _NOT_REACHED,
        "embedding": _object({"space": {"type": ["string", "null"]}, "state": _TEXT, "problem": _TEXT}, "problem"),
        "bundle": bundle,
    }
    hit = {
        "key": _TEXT,
        "score": _NUMBER,
        "cosine": {"type": ["number", "null"]},
        "bm25": {"type": ["number", "null"]},
        "passage": {"type": ["object", "null"]},
        "moved_on": {"type": "boolean"},
        "answer": {"type": "object"},
    }
    return {
        "Answer": _object(answer, "embedding", "id", "tokens", "position", "not_reached"),
        "Answers": _object({"answers": {"type": "array", "items": {"$ref": "#/components/schemas/Answer"}}}),
        "Batch": _object({"keys": {"type": "array", "items": _TEXT, "maxItems": KEYS_MAX}}, closed=True),
        "Contexts": _object({"contexts": {"type": "array", "items": {"type": "object"}}}),
        "Fields": _object(
            {"context": _TEXT, "spec_version": {"type": "integer"}, "sections": _ORIGINS, "fields": _ORIGINS}
        ),
        "Problem": _object(
            {
                "type": _TEXT,
                "title": _TEXT,
                "status": {"type": "integer"},
                "detail": _TEXT,
                "mistakes": {"type": "array"},
            },
            "mistakes",
        ),
        "PastBundle": _object(_past()),
        "Lineage": _object(_lineage_schema()),
        "Search": _search_schema(),
        "SearchAnswer": _object(
            {
                "context": _TEXT,
                "space": _TEXT,
                "spec_version": {"type": "integer"},
                "mode": {"enum": ["vector", "lexical", "hybrid"]},
                "degraded": {"type": ["string", "null"]},
                "index": {"type": "object"},
                "dropped": {"type": "integer"},
                "not_reached": _NOT_REACHED,
                "hits": {"type": "array", "items": _object(hit)},
            },
            "not_reached",
        ),
        "State": _object({"status": _TEXT}),
    }


def _past() -> dict[str, Schema]:
    position = {"lsn": _TEXT, "commit_time": _TIME, "write_time": _TIME}
    return {
        "context": _TEXT,
        "key": _TEXT,
        "id": _TEXT,
        "spec_version": {"type": "integer"},
        "written": _TIME,
        "sources": {"type": "object", "additionalProperties": _object(position, *position)},
        "sections": {"type": "object", "additionalProperties": _object({"written": _TIME})},
        "left_out": {"type": "array", "items": _object({"section": _TEXT, "reason": _TEXT})},
        "tokens": {"type": ["integer", "null"]},
        "hash": _TEXT,
        "bundle": {"type": "object"},
    }


def _lineage_schema() -> dict[str, Schema]:
    row = {"key": _TEXT, "columns": {"type": "object"}, "many": {"type": "boolean"}, "version": _TEXT}
    field: dict[str, Schema] = {
        "path": _TEXT,
        "field": _TEXT,
        "value": {},
        "kind": {"enum": ["column", "value", "aggregate", "group"]},
        "entity": _TEXT,
        "source": _TEXT,
        "table": _TEXT,
        "column": _TEXT,
        "expression": _TEXT,
        "mask": _TEXT,
        "row": {"anyOf": [_object({**row, "position": {"type": "object"}}, *row, "position"), {"type": "null"}]},
        "reason": {"type": ["string", "null"]},
        "written": _TIME,
        "embedded": {"type": "boolean"},
    }
    vector = _object({"space": _TEXT, "of_this_bundle": {"type": "boolean"}})
    return {
        "context": _TEXT,
        "key": _TEXT,
        "id": {"type": ["string", "null"]},
        "spec_version": {"type": "integer"},
        "hash": _TEXT,
        "vector": {"anyOf": [vector, {"type": "null"}]},
        "fields": {"type": "array", "items": _object(field, "column", "expression", "mask")},
    }


def _search_schema() -> Schema:
    value = {"type": ["string", "number", "boolean", "null"]}
    comparisons = {"type": "object", "minProperties": 1, "additionalProperties": {"anyOf": [value, {"type": "array"}]}}
    condition = {"anyOf": [value, {"type": "array", "items": value}, comparisons]}
    asked: dict[str, Schema] = {
        "text": {"type": "string", "minLength": 1},
        "vector": {"type": "array", "items": _NUMBER, "minItems": 1},
        "key": {"type": "string", "minLength": 1},
        "k": {"type": "integer", "minimum": 1, "maximum": K_MAX},
        "filter": {"type": "object", "additionalProperties": condition},
        "min_score": {"type": ["number", "null"], "minimum": -1, "maximum": 1},
        "mode": {"enum": list(MODES)},
        "space": {"type": ["string", "null"]},
        "bundles": {"type": "boolean"},
        "budget_ms": {"type": ["number", "null"], "minimum": 1, "maximum": SEARCH_BUDGET_MS_MAX},
        "position": {"anyOf": [_TEXT, _POSITIONS]},
    }
    one_of = [{"required": [name]} for name in ("text", "vector", "key")]
    return {**_object(asked, *asked, closed=True), "oneOf": one_of}
