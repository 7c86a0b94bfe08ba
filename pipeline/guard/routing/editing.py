"""Edits routing.yaml as a person would: the values that change are replaced where they stand, comments and order stay.

What comes out is read again and has to say exactly what was wanted; where it does not, nothing is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from pipeline.core.errors import ConfigError

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
Change = tuple[int, int, str]
"""Characters from, to, and what stands there instead."""


def edited(text: str, task: str, changes: Mapping[str, Any]) -> str:
    """`changes` by key of the task: its new value, None: the key goes. New keys come behind `active`. Raises
    ConfigError where the file is written in a way that can't be edited like this."""
    for key, value in reversed(list(changes.items())):  # each new key comes behind `active`
        made = _change(text, _task(text, task), key, value)
        if made is not None:
            start, end, instead = made
            text = text[:start] + instead + text[end:]
    return text


def _task(text: str, task: str) -> yaml.MappingNode:
    try:
        tasks = _value(yaml.compose(text, Loader=yaml.SafeLoader), "tasks")
    except yaml.YAMLError:
        tasks = None
    node = None if tasks is None else _value(tasks, task)
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError([f"the task {task!r} is no mapping of its own that can be edited; write it out by hand"])
    return node


def _change(text: str, node: yaml.MappingNode, key: str, value: Any) -> Change | None:
    found = next(((name, old) for name, old in node.value if name.value == key), None)
    if found is not None and value is not None:
        return found[1].start_mark.index, _end(found[1]), written(value)
    if found is not None:
        return _taken_out(text, node, *found)
    return None if value is None else _put_in(text, node, f"{key}: {written(value)}")


def _put_in(text: str, node: yaml.MappingNode, entry: str) -> Change:
    active = next(pair for pair in node.value if pair[0].value == "active")
    at = _end(active[1])
    if node.flow_style:
        return at, at, f", {entry}"
    line_ends = text.find("\n", at)
    at = len(text) if line_ends < 0 else line_ends
    return at, at, f"\n{' ' * active[0].start_mark.column}{entry}"


def _taken_out(text: str, node: yaml.MappingNode, name: yaml.Node, value: yaml.Node) -> Change:
    """A whole line, or in a flow the entry with one comma."""
    start, end = name.start_mark.index, _end(value)
    if not node.flow_style:
        line_ends = text.find("\n", end)
        return text.rfind("\n", 0, start) + 1, len(text) if line_ends < 0 else line_ends + 1, ""
    before = text.rfind(",", node.start_mark.index, start)
    if before >= 0 and not text[before + 1 : start].strip():
        return before, end, ""
    after = text.find(",", end)
    return start, (after + 1 + (text[after + 1 : after + 2] == " ")) if after >= 0 else end, ""


def _end(node: yaml.Node) -> int:
    """Behind the last character of a value; of a block, PyYAML's own mark is at whatever comes next."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _value(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)


def written(value: Any) -> str:
    """In one line, as YAML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(written(inner) for inner in value) + "]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
