"""Chat completions: a request and an endpoint → the body that is sent; a body that came → what it says. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from pipeline.guard.config import Endpoint
from pipeline.guard.output import Checked, Tool
from pipeline.guard.strict_json import InvalidOutput
from pipeline.guard.values import ModelRequest, Tokens, ToolCall

PATH = "/chat/completions"
_TOOL_CALLS_MAX = 64


@dataclass(frozen=True, slots=True)
class Asked:
    """One tool call as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Envelope:
    """What an answer holds, unchecked. `cut`: the model was stopped before its end; `refusal`: it, or a filter, would
    not answer."""

    text: str
    asked: tuple[Asked, ...]
    cut: bool
    refusal: str
    model: str
    tokens: Tokens


def body_of(request: ModelRequest, endpoint: Endpoint) -> dict[str, Any]:
    """The fields of the request's JSON body; the same request gives the same body."""
    body: dict[str, Any] = {
        **request.parameters,
        "model": endpoint.model,
        "messages": [dict(message) for message in request.messages],
        "max_tokens": request.output_tokens_max,
        "stream": False,
    }
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": dict(tool.parameters),
                },
            }
            for tool in request.tools
        ]
    schema = request.output.json_schema
    if request.output.kind == "json" and endpoint.constraint == "json_object":
        body["response_format"] = {"type": "json_object"}
    elif schema is not None and endpoint.constraint == "json_object_schema":
        body["response_format"] = {"type": "json_object", "schema": dict(schema)}
    elif schema is not None and endpoint.constraint == "json_schema":
        named = {"name": request.output.name, "strict": True, "schema": dict(schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    return body


class _Function(msgspec.Struct):
    name: str
    arguments: str | None = None


class _Call(msgspec.Struct):
    function: _Function
    id: str | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    tool_calls: list[_Call] | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]
    model: str | None = None
    usage: _Usage | None = None


_DECODER = msgspec.json.Decoder(_Answer)


def read_answer(body: bytes) -> Envelope | str:
    """The first choice, or one sentence on why this is no answer of chat completions."""
    try:
        answer = _DECODER.decode(body)
    except msgspec.ValidationError as error:
        return f"the answer is no chat completion: {error}"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"the answer is no whole JSON: {error}"
    if not answer.choices:
        return "the answer has no choices"
    choice = answer.choices[0]
    message = choice.message
    asked = tuple(
        Asked(call.id or "", call.function.name, call.function.arguments or "") for call in message.tool_calls or ()
    )
    refusal = message.refusal or ("content_filter" if choice.finish_reason == "content_filter" else "")
    usage = answer.usage or _Usage()
    tokens = Tokens(_counted(usage.prompt_tokens), _counted(usage.completion_tokens))
    cut = choice.finish_reason == "length"
    return Envelope(message.content or "", asked, cut, refusal, (answer.model or "")[:300], tokens)


def checked(envelope: Envelope, request: ModelRequest) -> tuple[Checked, tuple[ToolCall, ...]]:
    """The output, or the tool calls in its stead. Raises InvalidOutput.

    The finish_reason is believed where it says that something is cut, and nowhere else: endpoints say `stop` for tool
    calls that end in the middle.
    """
    if envelope.cut:
        raise InvalidOutput("cut", "it was cut at the limit of tokens; be shorter")
    if envelope.asked:
        return Checked(None), _tool_calls(envelope.asked, request.tools, request.output.bytes_max)
    return request.output.check(envelope.text), ()


def _tool_calls(asked: Sequence[Asked], tools: Sequence[Tool], bytes_max: int) -> tuple[ToolCall, ...]:
    if len(asked) > _TOOL_CALLS_MAX:
        raise InvalidOutput("too_large", f"it asks for {len(asked)} tools at once, at most {_TOOL_CALLS_MAX} are taken")
    known = {tool.name: tool for tool in tools}
    found = []
    for call in asked:
        tool = known.get(call.name)
        if tool is None:
            names = ", ".join(sorted(known)) or "none"
            raise InvalidOutput("unknown_tool", f"there is no tool {call.name[:60]!r}; there are: {names}")
        try:
            found.append(ToolCall(call.id, call.name, tool.arguments(call.arguments, bytes_max)))
        except InvalidOutput as error:
            kind = "tool_cut" if error.kind == "not_json" else error.kind
            raise InvalidOutput(kind, f"arguments of the tool {call.name}: {error.detail}") from None
    return tuple(found)


def _counted(count: int | None) -> int | None:
    return count if count is not None and 0 <= count < 1_000_000_000 else None
