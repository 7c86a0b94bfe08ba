"""What an answer has to be: a text, a value of a JSON Schema, a pydantic model; and the tools a model may ask for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jsonschema_rs
from pydantic import BaseModel, ValidationError

from pipeline.core.errors import ConfigError
from pipeline.guard.strict_json import BYTES_MAX, DEPTH_MAX, InvalidOutput, mended, parse
from pipeline.guard.strict_json import check_text as _check_text

_MISTAKES_MAX = 5


@dataclass(frozen=True, slots=True)
class Checked:
    """An output that holds; `repaired`: words around its JSON value were dropped."""

    value: Any
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    """Made by `of_text`, `of_schema` or `of_model`. `name` is a label of metrics and half of the name of a breaker."""

    name: str
    kind: Literal["text", "json"]
    json_schema: Mapping[str, Any] | None = None
    bytes_max: int = BYTES_MAX
    depth_max: int = DEPTH_MAX
    validate: Callable[[str, Any], Any] | None = field(default=None, compare=False, repr=False)
    """(text, parsed value) → what the caller gets; raises InvalidOutput."""

    def check(self, text: str) -> Checked:
        """Raises InvalidOutput. JSON is mended at most once, and only by dropping what stands around it."""
        if self.kind == "text":
            _check_text(text, self.bytes_max)
            if not text.strip():
                raise InvalidOutput("empty", "it is empty")
            return Checked(text)
        try:
            return Checked(self._validated(text))
        except InvalidOutput as error:
            if error.kind != "not_json":
                raise
            inner = mended(text)
            if inner is None or inner == text:
                raise
            return Checked(self._validated(inner), repaired=True)

    def check_value(self, value: Any) -> Any:
        """Of a value that the application made: a model's instance, or what could be JSON."""
        if self.kind == "text":
            if not isinstance(value, str):
                raise InvalidOutput("wrong_type", f"it is a {type(value).__name__}, a text was asked for")
            return self.check(value).value
        if isinstance(value, BaseModel):
            value = value.model_dump(mode="json")
        try:
            text = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidOutput("not_json", f"it can't be written as JSON: {error}") from None
        return self._validated(text)

    def _validated(self, text: str) -> Any:
        value = parse(text, self.bytes_max, self.depth_max)
        return value if self.validate is None else self.validate(text, value)


def of_text(bytes_max: int = BYTES_MAX) -> Output:
    return Output("text", "text", bytes_max=bytes_max)


def of_schema(name: str, schema: Mapping[str, Any], bytes_max: int = BYTES_MAX, depth_max: int = DEPTH_MAX) -> Output:
    """Draft 2020-12 where the schema names no other. Raises ConfigError for a schema that is none, or that refers to
    something outside of itself: nothing is ever fetched."""
    check = _schema_check(schema, f"output {name!r}")
    return Output(name, "json", schema, bytes_max, depth_max, lambda _, value: _checked(check, value))


def of_model(model: type[BaseModel], bytes_max: int = BYTES_MAX, depth_max: int = DEPTH_MAX) -> Output:
    """Strict: no "5" for 5, and no field that the model does not know unless its own `extra` says otherwise."""
    extra: Literal["forbid"] | None = None if "extra" in model.model_config else "forbid"

    def validate(text: str, value: Any) -> BaseModel:
        try:
            return model.model_validate_json(text, strict=True, extra=extra)
        except ValidationError as error:
            told = [
                f"{'.'.join(map(str, one['loc'])) or 'it'}: {one['msg']}"
                for one in error.errors(include_url=False, include_input=False, include_context=False)[:_MISTAKES_MAX]
            ]
            raise InvalidOutput("schema", "; ".join(told)) from None

    return Output(model.__name__, "json", model.model_json_schema(), bytes_max, depth_max, validate)


@dataclass(frozen=True)
class Tool:
    """A function that a model may ask for; `parameters` is the JSON Schema of its arguments. Raises ConfigError."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    _check: jsonschema_rs.Validator = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_check", _schema_check(self.parameters, f"tool {self.name!r}"))

    def arguments(self, text: str, bytes_max: int = BYTES_MAX) -> Mapping[str, Any]:
        """Raises InvalidOutput. Never mended: what is cut here would be done to something."""
        value = parse(text, bytes_max)
        if not isinstance(value, dict):
            raise InvalidOutput("schema", "arguments of a tool are an object")
        _checked(self._check, value)
        return value


def _schema_check(schema: Mapping[str, Any], whose: str) -> jsonschema_rs.Validator:
    try:
        return jsonschema_rs.validator_for(dict(schema), offline=True)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        told = str(error).partition("\n")[0]
        raise ConfigError([f"{whose}: its JSON Schema can't be used: {told}. Mend the schema"]) from None


def _checked(check: jsonschema_rs.Validator, value: Any) -> Any:
    if check.is_valid(value):
        return value
    told = []
    for error in check.iter_errors(value):
        told.append(f"{'.'.join(map(str, error.instance_path)) or 'it'}: {error.message}")
        if len(told) == _MISTAKES_MAX:
            break
    raise InvalidOutput("schema", "; ".join(told))


TEXT = of_text()
