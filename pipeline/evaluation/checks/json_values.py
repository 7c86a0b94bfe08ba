"""JSON values for checks: the part at a pointer, equality and inclusion as JSON means them, and how they are shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

SHOWN_CHARACTERS_MAX = 160
_INDEX = re.compile(r"0|[1-9][0-9]*")


class Missing:
    """There is nothing at a pointer."""

    def __repr__(self) -> str:
        return "nothing"


MISSING: Final = Missing()


def at(value: Any, pointer: str | None) -> Any:
    """The part that a JSON Pointer (RFC 6901) names, the whole for None and "", or MISSING."""
    if not pointer:
        return value
    for token in pointer[1:].split("/"):
        name = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, Mapping):
            value = value.get(name, MISSING)
        elif is_list(value) and _INDEX.fullmatch(name) and int(name) < len(value):
            value = value[int(name)]
        else:
            return MISSING
    return value


def pointer_mistake(pointer: str) -> str:
    """What is wrong with it, "" for nothing."""
    if pointer and not pointer.startswith("/"):
        return f"{pointer!r} is no JSON Pointer; write /{pointer.replace('.', '/')}"
    if re.search(r"~(?![01])", pointer):
        return f"{pointer!r} is no JSON Pointer; a ~ in a name is written ~0, a / is written ~1"
    return ""


def same(one: Any, other: Any) -> bool:
    """Equal as JSON: 5 is 5.0, but true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one == other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if is_list(one) and is_list(other):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def includes(whole: Any, part: Any) -> bool:
    """Objects may hold more than is asked for, at every depth; everything else has to be the same."""
    if isinstance(whole, Mapping) and isinstance(part, Mapping):
        return all(key in whole and includes(whole[key], value) for key, value in part.items())
    if is_list(whole) and is_list(part):
        return len(whole) == len(part) and all(map(includes, whole, part))
    return same(whole, part)


def first_difference(expected: Any, came: Any, path: str = "") -> str:
    """One sentence on the first place where they differ, "" where they don't."""
    if isinstance(expected, Mapping) and isinstance(came, Mapping):
        for key in sorted(expected.keys() | came.keys()):
            inner = f"{path}/{_escaped(key)}"
            if key not in came:
                return f"{inner}: expected {shown(expected[key])}, came nothing"
            if key not in expected:
                return f"{inner}: expected nothing, came {shown(came[key])}"
            found = first_difference(expected[key], came[key], inner)
            if found:
                return found
        return ""
    if is_list(expected) and is_list(came) and len(expected) == len(came):
        pairs = enumerate(zip(expected, came, strict=True))
        return next((told for i, (one, other) in pairs if (told := first_difference(one, other, f"{path}/{i}"))), "")
    if same(expected, came):
        return ""
    return f"{path or 'it'}: expected {shown(expected)}, came {shown(came)}"


def texts(value: Any) -> Iterator[str]:
    """Every text in it, keys of objects too, and every number as JSON writes it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from texts(inner)
    elif is_list(value):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield json.dumps(value)


def shown(value: Any) -> str:
    """As JSON, cut to what fits into a sentence."""
    if isinstance(value, Missing):
        return "nothing"
    try:
        text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS_MAX else f"{text[: SHOWN_CHARACTERS_MAX - 1]}…"


def is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
