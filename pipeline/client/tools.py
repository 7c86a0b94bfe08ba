"""Contexts as functions that a model may call, in the strict form of OpenAI's interface: every argument is required,
null stands for "as usual", and nothing else is taken. Pure but for the calls themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline.client.bundle import Bundle
from pipeline.client.errors import BadRequest, ClientError
from pipeline.client.results import ContextInfo, Found
from pipeline.core.canary import is_canary

if TYPE_CHECKING:
    from pipeline.client.asynchronous import AsyncClient

BUNDLE, SEARCH = "get_context_bundle", "search_context"
NAME_CHARACTERS_MAX = 64
"""Of a function, as providers take it."""
K_MAX = 20
ARGUMENTS_CHARACTERS_MAX = 100_000
Schema = dict[str, Any]

_MAX_AGE: Schema = {
    "type": ["number", "null"],
    "description": "In milliseconds: up to which age the answer counts as fresh. null: as the context says.",
}
_TOKENS: Schema = {
    "type": ["integer", "null"],
    "description": "At most so many tokens; less important sections are left out. null: all of it.",
}
_SECTIONS: Schema = {
    "type": ["array", "null"],
    "items": {"type": "string"},
    "description": "Only these sections, beside the bundle's own fields. null: all of them.",
}


def tool_schemas(contexts: Sequence[ContextInfo]) -> list[Schema]:
    """Two functions per context that can be searched, one for others: [{"type": "function", "function": {…}}]. None
    for canaries, which tell a model nothing."""
    found = []
    for info in contexts:
        if is_canary(info.context, info.description):
            continue
        found.append(_bundle_tool(info))
        if info.space is not None:
            found.append(_search_tool(info))
    return found


def tool_name(kind: str, context: str) -> str:
    """get_context_bundle_flight; a name that is too long ends in a hash."""
    name = f"{kind}_{context}"
    if len(name) <= NAME_CHARACTERS_MAX:
        return name
    mark = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
    return f"{name[: NAME_CHARACTERS_MAX - 9]}_{mark}"


async def answer_call(client: AsyncClient, name: str, arguments: str, budget_ms: float | None = None) -> str:
    """See AsyncClient.call_tool."""
    try:
        contexts = await client.contexts()
        kind, info = _called(contexts, name)
        given = _arguments(arguments, _parameters(_tool(kind, info)))
        if kind == SEARCH:
            if not 1 <= given["k"] <= K_MAX:
                raise BadRequest([f"k is 1 to {K_MAX}"])
            found = await client.search(
                info.context, given["text"], k=given["k"], filter=_filter(given["filter"]), budget_ms=budget_ms
            )
            return _told_found(found)
        bundle = await client.get(
            info.context,
            given["key"],
            budget_ms=budget_ms,
            max_age_ms=given["max_age_ms"],
            token_budget=given["token_budget"],
            sections=given["sections"],
        )
        return _told_bundle(bundle).decode()
    except BadRequest as error:
        return _told_error("the call can't be answered; mend it and call again", error.mistakes)
    except ClientError as error:
        return _told_error("no answer now; go on without, and say so", [str(error)])


def _bundle_tool(info: ContextInfo) -> Schema:
    shape = "|".join(info.key)
    parts = " Parts are joined by |; a | inside a part is written %7C." if len(info.key) > 1 else ""
    return _function(
        tool_name(BUNDLE, info.context),
        f"The context bundle of one {info.context} by its key. {info.description} The answer says how old it may be: "
        "treat stale, partial and fallback with care; missing means that there is none.",
        {
            "key": {"type": "string", "description": f"The key, {shape}.{parts}"},
            "max_age_ms": _MAX_AGE,
            "token_budget": _TOKENS,
            "sections": _SECTIONS,
        },
    )


def _search_tool(info: ContextInfo) -> Schema:
    return _function(
        tool_name(SEARCH, info.context),
        f"The {info.context} bundles that come nearest to a question in plain words. {info.description}",
        {
            "text": {"type": "string", "description": "What is looked for, in plain words."},
            "k": {"type": "integer", "description": f"How many, 1 to {K_MAX}."},
            "filter": {
                "type": ["string", "null"],
                "description": 'A JSON object that narrows by fields, e.g. {"year": {"lt": 1990}}. null: none.',
            },
        },
    )


def _function(name: str, description: str, properties: dict[str, Schema]) -> Schema:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    told = {"name": name, "description": description, "strict": True, "parameters": parameters}
    return {"type": "function", "function": told}


def _tool(kind: str, info: ContextInfo) -> Schema:
    return _bundle_tool(info) if kind == BUNDLE else _search_tool(info)


def _parameters(tool: Schema) -> dict[str, Schema]:
    properties: dict[str, Schema] = tool["function"]["parameters"]["properties"]
    return properties


def _called(contexts: Sequence[ContextInfo], name: str) -> tuple[str, ContextInfo]:
    known: dict[str, tuple[str, ContextInfo]] = {}
    for info in contexts:
        for kind in (BUNDLE, SEARCH) if info.space is not None else (BUNDLE,):
            known[tool_name(kind, info.context)] = (kind, info)
    if name not in known:
        raise BadRequest([f"no function {str(name)[:80]!r}; known are {', '.join(known) or 'none'}"])
    return known[name]


def _arguments(text: str, properties: dict[str, Schema]) -> dict[str, Any]:
    """All of them, None where they are left out and may be; raises BadRequest with all that is wrong."""
    if not isinstance(text, str) or len(text) > ARGUMENTS_CHARACTERS_MAX:
        raise BadRequest([f"the arguments are a JSON object of at most {ARGUMENTS_CHARACTERS_MAX:,} characters"])
    try:
        data = msgspec.json.decode(text.encode("utf-8", "replace"))
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest([f"the arguments are no JSON: {error}"]) from None
    if not isinstance(data, dict):
        raise BadRequest(["the arguments are a JSON object"])
    mistakes = [f"{name[:80]!r} is no argument; known are {', '.join(properties)}" for name in data.keys() - properties]
    mistakes.sort()
    for name, schema in properties.items():
        problem = _mistake(data.get(name), schema)
        if problem is not None:
            mistakes.append(f"{name} {problem}" if name in data else f"{name} is missing")
    if mistakes:
        raise BadRequest(mistakes)
    return {name: data.get(name) for name in properties}


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "string": ((str,), "a text"),
    "integer": ((int,), "a whole number"),
    "number": ((int, float), "a number"),
    "array": ((list,), "a list of texts"),
    "null": ((type(None),), "null"),
}


def _mistake(value: Any, schema: Schema) -> str | None:
    """Of the kinds that these schemas use."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    fits = any(isinstance(value, _KINDS[kind][0]) and not isinstance(value, bool) for kind in kinds)
    if fits and isinstance(value, list):
        fits = all(isinstance(one, str) for one in value)
    return None if fits else f"is {' or '.join(_KINDS[kind][1] for kind in kinds)}"


def _filter(text: str | None) -> dict[str, Any] | None:
    """A text, because strict schemas have no objects of any shape."""
    if text is None or not text.strip():
        return None
    try:
        found = msgspec.json.decode(text.encode("utf-8", "replace"))
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest([f"filter is no JSON: {error}"]) from None
    if not isinstance(found, dict):
        raise BadRequest(["filter is a JSON object"])
    return found


def _told_bundle(bundle: Bundle, **more: Any) -> bytes:
    """What a model needs of the labels, and the bundle as its bytes are."""
    told: dict[str, Any] = {"context": bundle.context, "key": bundle.key, "status": bundle.status, **more}
    if bundle.oldest_ms is not None:
        told["age_ms"] = round(bundle.oldest_ms)
    if bundle.left_out:
        told["left_out"] = dict(bundle.left_out)
    if bundle.id is not None:
        told["id"] = bundle.id
    body = b"null" if bundle.raw is None else bundle.raw
    return b'%b,"bundle":%b}' % (msgspec.json.encode(told)[:-1], body)


def _told_found(found: Found) -> str:
    head: dict[str, Any] = {"context": found.context}
    if found.degraded is not None:
        head["degraded"] = found.degraded
    hits = b",".join(_told_bundle(hit.bundle, score=round(hit.score, 4)) for hit in found.hits)
    return (b'%b,"hits":[%b]}' % (msgspec.json.encode(head)[:-1], hits)).decode()


def _told_error(error: str, mistakes: Sequence[str]) -> str:
    return msgspec.json.encode({"error": error, "mistakes": list(mistakes)}).decode()
