"""What must not get into a recording: keys of the configuration and the environment, and what looks like one. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.guard.config import GuardConfig
from pipeline.guard.secrets import SHAPES

SECRET_CHARACTERS_MIN = 8
"""A shorter value of the environment would be found in words that are none."""
_NAMED = re.compile(r"(^|_)(api_?key|key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
"""Variables of the environment whose values are secrets."""

_ADDRESS = re.compile(r"(?<=://)[^\s/:@\"'\\]*:[^\s/@\"'\\]+(?=@)")
_SHAPES = (
    *((name, re.compile(shape, re.DOTALL)) for name, shape in SHAPES),
    ("the password of an address", _ADDRESS),
)


@dataclass(frozen=True, slots=True)
class Found:
    """One secret: what it is called, and where (a JSON Pointer, or "" in a text)."""

    name: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.name} at {self.where}" if self.where else self.name


class Secrets:
    """`known`: values by what they are called, such as `the key of endpoint large`. `none`: texts that only look like
    one, such as the key of an example; a known one is a secret all the same."""

    def __init__(self, known: Mapping[str, str], none: Iterable[str] = ()) -> None:
        self._none = tuple(none)
        self._known = sorted(((name, value) for name, value in known.items() if value), key=lambda item: -len(item[1]))

    def in_text(self, text: str) -> list[str]:
        """Names of what is in it."""
        found = [name for name, value in self._known if value in text]
        return found + [name for name, shape in _SHAPES if any(map(self._counts, shape.finditer(text)))]

    def in_value(self, value: Any, where: str = "") -> Iterator[Found]:
        """In the strings of a JSON value, names of its fields included."""
        if isinstance(value, str):
            yield from (Found(name, where or "/") for name in self.in_text(value))
        elif isinstance(value, Mapping):
            for field, inner in value.items():
                place = f"{where}/{str(field).replace('~', '~0').replace('/', '~1')}"
                yield from (Found(f"{name} as a name", where or "/") for name in self.in_text(str(field)))
                yield from self.in_value(inner, place)
        elif isinstance(value, list | tuple):
            for number, inner in enumerate(value):
                yield from self.in_value(inner, f"{where}/{number}")

    def masked(self, text: str) -> tuple[str, list[str]]:
        """The text with stars in their place, as many as there were characters, and what was masked."""
        names = []
        for name, value in self._known:
            if value in text:
                names.append(name)
                text = text.replace(value, "*" * len(value))
        for name, shape in _SHAPES:
            starred = shape.sub(lambda match: "*" * len(match[0]) if self._counts(match) else match[0], text)
            names += [name] if starred != text else []
            text = starred
        return text, names

    def _counts(self, match: re.Match[str]) -> bool:
        return not any(text in match[0] for text in self._none)


def secrets_of(guard: GuardConfig, environment: Mapping[str, str], none: Iterable[str] = ()) -> Secrets:
    """Keys of endpoints, and values of variables that are named like secrets. `none`: see Secrets."""
    known = {
        f"the variable {name}": value
        for name, value in environment.items()
        if _NAMED.search(name) and len(value) >= SECRET_CHARACTERS_MIN
    }
    for endpoint in guard.endpoints:
        if endpoint.api_key is not None:
            known[f"the key of endpoint {endpoint.name}"] = endpoint.api_key.get_secret_value()
    return Secrets(known, none)
