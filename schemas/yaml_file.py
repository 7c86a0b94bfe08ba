"""YAML files as people write them: plain data with the line of every part, and every mistake in words with its line."""

# PyYAML's own constructors are not used for mappings: they drop duplicate keys silently, read `on:` as true and
# 2026-01-02 as a date (YAML 1.1), and follow aliases without a limit.

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from schemas.errors import SpecError

SECRET_KEY = re.compile(r"passw|passphrase|pwd|secret|token|dsn|credential|api_?key|private_?key", re.IGNORECASE)
"""Keys whose values are shown nowhere."""
FILE_SIZE_MAX = 1_000_000
PARTS_MAX = 100_000

Location = tuple[str | int, ...]
"""The way to a part of the file: keys and list positions."""


class Mistake(typing.NamedTuple):
    """What is wrong with the part at `location`."""

    location: Location
    text: str


@dataclass
class Document:
    """A read file: `data` is str, int, float, bool, None, list and dict only; `lines` are those of keys or items."""

    path: Path
    data: Any = None
    lines: dict[Location, int] = field(default_factory=dict)
    texts: dict[Location, int] = field(default_factory=dict)
    """Where the text of a value begins: a line below its key for block scalars."""

    def line(self, location: Location) -> int:
        """The line of the part, or of the nearest part around it that is in the file."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)

    def place(self, location: Location) -> str:
        return f"{self.path}:{self.line(location)}"

    def sentences(self, mistakes: Iterable[Mistake]) -> list[str]:
        """`file:line: where: what`, in the order of the lines, each once."""
        found = {(self.line(m.location), f"{_where(m.location)}{m.text}"): None for m in mistakes}
        return [f"{self.path}:{line}: {text}" for line, text in sorted(found, key=lambda item: item[0])]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: only true and false are booleans, dates and 12:30 are text."""


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$|^[-+]?[0-9]+[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> Document:
    """Raises SpecError: no such file, too large, not UTF-8, not YAML, empty, duplicate keys, circles of aliases."""
    document = Document(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise SpecError([f"{path}: no such file{_neighbour(path)}"]) from None
    except OSError as error:
        raise SpecError([f"{path}: cannot be read: {error.strerror}"]) from None
    if len(content) > FILE_SIZE_MAX:
        raise SpecError([f"{path}: larger than {FILE_SIZE_MAX} bytes; this is not a file of this kind"])
    try:
        node = _compose(content)
    except yaml.YAMLError as error:
        raise SpecError([_yaml_sentence(path, error)]) from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SpecError([f"{path}:{line}: not UTF-8 text"]) from None
    except RecursionError:
        raise SpecError([f"{path}: nested too deeply"]) from None
    if node is None:
        raise SpecError([f"{path}: the file is empty"])
    builder = _Builder(document)
    document.data = builder.build(node, (), ())
    if builder.mistakes:
        raise SpecError(document.sentences(builder.mistakes))
    return document


def _compose(content: bytes) -> yaml.Node | None:
    loader = _Loader(content.decode("utf-8-sig"))
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


class _Builder:
    """Turns nodes into data, writing down lines and mistakes."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.mistakes: list[Mistake] = []
        self._parts = 0

    def build(self, node: yaml.Node, location: Location, above: tuple[yaml.Node, ...]) -> Any:
        self.document.lines.setdefault(location, node.start_mark.line + 1)
        self._parts += 1
        if self._parts > PARTS_MAX:
            if self._parts == PARTS_MAX + 1:
                self.mistakes.append(Mistake(location, f"more than {PARTS_MAX} parts; aliases multiply"))
            return None
        if any(node is outer for outer in above):
            self.mistakes.append(Mistake(location, "an alias leads in a circle; a part cannot contain itself"))
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, location, (*above, node))
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*location, i), (*above, node)) for i, item in enumerate(node.value)]
        return self._scalar(node, location)

    def _mapping(self, node: yaml.MappingNode, location: Location, above: tuple[yaml.Node, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.mistakes.append(Mistake(location, f"line {line}: a key must be a word, not a list or mapping"))
                continue
            key, inner = key_node.value, (*location, key_node.value)
            if key in result:
                first = self.document.lines[inner]
                self.document.lines[(*inner, "@again")] = line
                self.mistakes.append(Mistake((*inner, "@again"), f"written twice, first on line {first}"))
                continue
            self.document.lines[inner] = line
            result[key] = self.build(value_node, inner, above)
        return result

    def _scalar(self, node: yaml.Node, location: Location) -> Any:
        block = isinstance(node, yaml.ScalarNode) and node.style in ("|", ">")
        self.document.texts[location] = node.start_mark.line + (2 if block else 1)
        kind = node.tag.rpartition(":")[2]
        if kind == "null":
            return None
        if kind == "bool":
            return node.value.lower() == "true"
        if kind == "int":
            return int(node.value) if len(node.value) <= 300 else node.value
        if kind == "float":
            return float(node.value)
        if kind != "str":
            self.mistakes.append(Mistake(location, f"the tag {node.tag} is not allowed"))
        return node.value


def suggestion(word: Any, candidates: Iterable[str]) -> str:
    """`; did you mean X?`, or the few things that are known, or nothing."""
    known = sorted(set(candidates))
    near = difflib.get_close_matches(str(word).lower(), known, 1, 0.6)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 12 else ""


def mistakes_of(
    error: ValidationError, model: type[BaseModel], extra_keys: Mapping[str, Iterable[str]]
) -> list[Mistake]:
    """Pydantic's errors in words. `extra_keys`: model name → keys beside its fields that its shorthand accepts."""
    found = []
    unknown_at = {e["loc"][:-1] for e in error.errors() if e["type"] == "extra_forbidden"}
    for entry in error.errors():
        location, kind = tuple(entry["loc"]), entry["type"]
        if kind == "missing":
            if location[:-1] not in unknown_at or not extra_keys.get(_model_name(model, location[:-1])):
                found.append(Mistake(location[:-1], f"'{location[-1]}' is missing"))
        elif kind == "extra_forbidden":
            keys = known_keys(model, location[:-1], extra_keys)
            found.append(Mistake(location, f"unknown key{suggestion(location[-1], keys)}"))
        else:
            secret = any(SECRET_KEY.search(str(key)) for key in location[-1:])
            found.append(Mistake(location, _problem({**entry, "input": "…"} if secret else entry)))
    return found


def known_keys(model: type[BaseModel], location: Location, extra_keys: Mapping[str, Iterable[str]]) -> list[str]:
    """The keys that the model at `location` has."""
    at = _model_at(model, location)
    if at is None:
        return []
    return [*(field.alias or name for name, field in at.model_fields.items()), *extra_keys.get(at.__name__, ())]


def _model_name(model: type[BaseModel], location: Location) -> str:
    at = _model_at(model, location)
    return at.__name__ if at else ""


def _model_at(annotation: Any, location: Location) -> type[BaseModel] | None:
    for candidate in _alternatives(annotation):
        origin = typing.get_origin(candidate)
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            if not location:
                return candidate
            inner = candidate.model_fields.get(str(location[0]))
            return _model_at(inner.annotation, location[1:]) if inner else None
        if origin in (dict, list, tuple, Mapping) and location:
            # of tuples those of any length: X, ...
            return _model_at(typing.get_args(candidate)[0 if origin is tuple else -1], location[1:])
    return None


def _alternatives(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [part for argument in typing.get_args(annotation) for part in _alternatives(argument)]
    return [annotation]


_WORDS = {
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "dict_type": "must be a mapping (key: value)",
    "model_type": "must be a mapping (key: value)",
    "model_attributes_type": "must be a mapping (key: value)",
    "list_type": "must be a list",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
}


def _problem(entry: Mapping[str, Any]) -> str:
    kind, value, context = entry["type"], entry.get("input"), entry.get("ctx") or {}
    shown = f", not {_shown(value)}"
    if kind in _WORDS:
        return _WORDS[kind] + ("" if kind.endswith("too_short") else shown)
    if kind == "string_pattern_mismatch":
        near = re.sub(r"[^a-z0-9_]+", "_", str(value).lower()).strip("_")
        hint = f"; did you mean {near}?" if re.match(r"[a-z]", near) else ""
        return f"{_shown(value)} is no name: small letters, digits and _, beginning with a letter{hint}"
    if kind in ("literal_error", "enum"):
        allowed = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return f"{_shown(value)} is not one of {', '.join(allowed)}{_near(value, allowed)}"
    if kind in ("greater_than_equal", "greater_than", "less_than_equal", "less_than"):
        words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
        limits = " and ".join(f"{words[key]} {limit}" for key, limit in context.items() if key in words)
        return f"must be {limits}{shown}"
    if kind == "too_long":
        return f"at most {context.get('max_length')} can stand here"
    if kind == "value_error":
        return str(context.get("error", entry["msg"]))
    return f"{entry['msg'][:1].lower()}{entry['msg'][1:]}"


def _near(value: Hashable, allowed: list[str]) -> str:
    near = difflib.get_close_matches(str(value).lower(), allowed, 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = {None: "nothing", True: "true", False: "false"}.get(value) if not isinstance(value, (int, str)) else None
    text = ("true" if value else "false") if isinstance(value, bool) else text or repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _where(location: Location) -> str:
    marks = [i for i, part in enumerate(location) if str(part).startswith("@")]
    text = ".".join(map(str, location[: marks[0]] if marks else location))
    return f"{text}: " if text else ""


def _yaml_sentence(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    place = f"{path}:{mark.line + 1}" if mark else f"{path}"
    if "expected a single document" in str(error):
        problem = "two documents in one file; a line '---' begins a second one"
    return f"{place}: not YAML: {problem}"


def _neighbour(path: Path) -> str:
    folder = path.parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, 1, 0.7)
    return f"; did you mean {folder / near[0]}?" if near else ""
