"""Bundle → the text that a model reads: the spec's template in a sandbox, cut to its token budget. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import ChainableUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.core.errors import Poison
from schemas.context import ContextSpec, Text

_TEXT_CHARACTERS_MAX = 1_000_000
# Until a spec names a tokenizer: a word or a sign is a token, which no tokenizer in use undercuts by much.
_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class RenderedText:
    """`left_out`: sections that had to go, least important first; `cut`: even the rest was too long and was cut."""

    text: str
    tokens: int
    left_out: tuple[str, ...] = ()
    cut: bool = False


def render_text(spec: ContextSpec, bundle: Mapping[str, Any]) -> RenderedText:
    """Raises Poison when the template fails on this bundle; ValueError when the spec has no text."""
    if spec.text is None:
        raise ValueError(f"context {spec.context} declares no text")
    budget, left_out = spec.text.token_budget, []
    remaining = dict(bundle)
    text = _rendered(spec.text, remaining)
    for section in _least_important_first(spec, spec.text):
        if budget is None or count_tokens(text) <= budget:
            break
        if remaining.pop(section, None) is not None:
            left_out.append(section)
            text = _rendered(spec.text, remaining)
    tokens = count_tokens(text)
    if budget is not None and tokens > budget:
        return RenderedText(_first_tokens(text, budget), budget, tuple(left_out), cut=True)
    return RenderedText(text, tokens, tuple(left_out))


def count_tokens(text: str) -> int:
    """Words and signs."""
    return sum(1 for _ in _TOKEN.finditer(text))


def _first_tokens(text: str, count: int) -> str:
    end = 0
    for number, match in enumerate(_TOKEN.finditer(text)):
        if number == count:
            break
        end = match.end()
    return text[:end]


def _least_important_first(spec: ContextSpec, text: Text) -> list[str]:
    """Sections that `priorities` does not name go first, the last declared first; then the named ones from the end."""
    unnamed = [name for name in spec.sections if name not in text.priorities]
    return [*reversed(unnamed), *reversed(text.priorities)]


@lru_cache(256)
def _template(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source)


def _rendered(text: Text, values: Mapping[str, Any]) -> str:
    try:
        rendered = _template(text.template).render(values)
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise Poison(f"the text template fails on this bundle: {error}") from error
    return rendered[:_TEXT_CHARACTERS_MAX].strip()
