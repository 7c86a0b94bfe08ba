"""What must not get into a recording: keys of the configuration and the environment, and what looks like one. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.guard.config import GuardConfig

SECRET_CHARACTERS_MIN = 8
"""A shorter value of the environment would be found in words that are none."""
_NAMED = re.compile(r"(^|_)(api_?key|key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
"""Variables of the environment whose values are secrets."""

_SHAPES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("a key of a model provider", re.compile(r"\bsk-[A-Za-z0-9_-]{16,}")),
    ("a key of Google", re.compile(r"\bAIza[A-Za-z0-9_-]{30,}")),
    ("a key of AWS", re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")),
    ("a token of GitHub", re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})")),
    ("a token of GitLab", re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}")),
    ("a token of Hugging Face", re.compile(r"\bhf_[A-Za-z0-9]{30,}")),
    ("a token of Slack", re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}")),
    ("a signed token", re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}")),
    ("a bearer credential", re.compile(r"(?i)(?<=\bbearer )[A-Za-z0-9._~+/=-]{16,}")),
    ("a private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)")),
    ("the password of an address", re.compile(r"(?<=://)[^\s/:@\"'\\]*:[^\s/@\"'\\]+(?=@)")),
)
"""What it is called, and what it looks like."""


@dataclass(frozen=True, slots=True)
class Found:
    """One secret: what it is called, and where (a JSON Pointer, or "" in a text)."""

    name: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.name} at {self.where}" if self.where else self.name


class Secrets:
    """`known`: values by what they are called, such as `the key of endpoint large`."""

    def __init__(self, known: Mapping[str, str]) -> None:
        self._known = sorted(((name, value) for name, value in known.items() if value), key=lambda item: -len(item[1]))

    def in_text(self, text: str) -> list[str]:
        """Names of what is in it."""
        found = [name for name, value in self._known if value in text]
        return found + [name for name, shape in _SHAPES if shape.search(text)]

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
            text, count = shape.subn(lambda match: "*" * len(match[0]), text)
            names += [name] if count else []
        return text, names


def secrets_of(guard: GuardConfig, environment: Mapping[str, str]) -> Secrets:
    """Keys of endpoints, and values of variables that are named like secrets."""
    known = {
        f"the variable {name}": value
        for name, value in environment.items()
        if _NAMED.search(name) and len(value) >= SECRET_CHARACTERS_MIN
    }
    for endpoint in guard.endpoints:
        if endpoint.api_key is not None:
            known[f"the key of endpoint {endpoint.name}"] = endpoint.api_key.get_secret_value()
    return Secrets(known)
