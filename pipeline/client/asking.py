"""What a caller asks, made ready for both modes, so that they take and refuse the same. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.client.errors import BadRequest, UnknownContext
from pipeline.lookup.keys import KEY_CHARACTERS_MAX
from pipeline.lookup.options import NO_OPTIONS, LookupOptions, option_mistakes

WHOLE_MAX = 10**19
_CONTEXT = re.compile(r"[a-z][a-z0-9_]*")

Position = str | Iterable[str] | Mapping[str, str] | None
"""A token, several, or `position` of a bundle."""
Paths = str | Iterable[str] | None
"""Paths with dots: several, or a text with commas."""


def asked(
    budget_ms: float | None,
    max_age_ms: float | None,
    position: Position,
    token_budget: int | None,
    sections: Paths,
    fields: Paths,
) -> LookupOptions:
    """Raises BadRequest with all that no context could take."""
    if (
        budget_ms is None
        and max_age_ms is None
        and position is None
        and token_budget is None
        and sections is None
        and fields is None
    ):
        return NO_OPTIONS
    mistakes: list[str] = []
    options = LookupOptions(
        budget_ms=_number("budget_ms", budget_ms, mistakes),
        max_age_ms=_number("max_age_ms", max_age_ms, mistakes),
        positions=_listed("position", position, mistakes) or (),
        token_budget=_whole("token_budget", token_budget, mistakes),
        sections=_listed("sections", sections, mistakes),
        fields=_listed("fields", fields, mistakes),
    )
    mistakes += option_mistakes(options)
    if mistakes:
        raise BadRequest(mistakes)
    return options


def check_context(context: str) -> None:
    """Raises UnknownContext for what no context can be called, before it becomes part of an address."""
    if not isinstance(context, str) or not _CONTEXT.fullmatch(context):
        raise UnknownContext(f"no context {context!r} is served here")


def check_keys(keys: Sequence[str]) -> None:
    """Raises BadRequest for what no context has as a key and no address can hold."""
    if isinstance(keys, str):
        raise BadRequest(["keys are a list of texts; `get` takes one"])
    for key in keys:
        if not isinstance(key, str):
            raise BadRequest([f"a key is text, not {type(key).__name__}"])
        if len(key) > KEY_CHARACTERS_MAX:
            raise BadRequest([f"a key of {len(key)} characters; at most {KEY_CHARACTERS_MAX} are allowed"])
        if not key.isascii() and any("\ud800" <= character <= "\udfff" for character in key):
            raise BadRequest(["a key has no NUL and no half of a surrogate pair"])


def _number(name: str, value: Any, mistakes: list[str]) -> float | None:
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (math.isfinite(value) if isinstance(value, float) else abs(value) < WHOLE_MAX):
        mistakes.append(f"{name} is a number of milliseconds, not {_shown(value)}")
        return None
    return float(value)


def _whole(name: str, value: Any, mistakes: list[str]) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= WHOLE_MAX:
        mistakes.append(f"{name} is a whole number, not {_shown(value)}")
        return None
    return value


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= WHOLE_MAX:
        return "one of so many digits"  # Python refuses to write the longest of them
    return repr(value)[:40]


def _listed(name: str, value: Any, mistakes: list[str]) -> tuple[str, ...] | None:
    """As the HTTP interface reads its parameters."""
    if value is None:
        return None
    given = [value] if isinstance(value, str) else list(value.values() if isinstance(value, Mapping) else value)
    if not all(isinstance(one, str) for one in given):
        mistakes.append(f"{name} is a text or a list of texts")
        return None
    parts = [part.strip() for one in given for part in one.split(",")]
    return tuple(dict.fromkeys(part for part in parts if part))
