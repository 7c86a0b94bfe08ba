"""Bundle → the text that a model reads: the spec's template in a sandbox, cut to its token budget. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from numbers import Number
from typing import Any

from jinja2 import ChainableUndefined, Template, TemplateError
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
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
    remaining: Any = dict(bundle)
    text = _rendered(spec.text, remaining)
    for section in _least_important_first(spec, spec.text):
        if budget is None or count_tokens(text) <= budget:
            break
        without = _without(remaining, section.split("."))
        if without != remaining:
            left_out.append(section)
            remaining = without
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
    named = {path.partition(".")[0] for path in text.priorities}
    unnamed = [name for name in spec.sections if name not in named]
    return [*reversed(unnamed), *reversed(text.priorities)]


def _without(value: Any, path: list[str]) -> Any:
    """A copy without the section at `path`, in each item where it lies in a list."""
    if isinstance(value, list):
        return [_without(item, path) for item in value]
    if not isinstance(value, dict) or value.get(path[0]) is None:
        return value
    if len(path) == 1:
        return {name: inner for name, inner in value.items() if name != path[0]}
    return {**value, path[0]: _without(value[path[0]], path[1:])}


class _Environment(ImmutableSandboxedEnvironment):
    """A bundle's own names go before the methods of a dict (`order.items`); the same bundle gives the same text."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True)
        for names, chance in ((self.globals, "lipsum"), (self.filters, "random")):
            del names[chance]

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """A text or list times a billion would take all memory."""
        if operator == "**" or not all(isinstance(side, Number) for side in (left, right)):
            raise SecurityError(f"{operator} is for numbers only here, and ** not at all")
        return super().call_binop(context, operator, left, right)


@lru_cache(256)
def _template(source: str) -> Template:
    return _Environment().from_string(source)


# What expressions, filters and methods of text raise; RuntimeError is also too deep a recursion.
_FAILURES = (
    TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RuntimeError,
    MemoryError,
)


def _rendered(text: Text, values: Mapping[str, Any]) -> str:
    try:
        rendered = _template(text.template).render(values)
    except _FAILURES as error:
        raise Poison(f"the text template fails on this bundle: {error}") from error
    return rendered[:_TEXT_CHARACTERS_MAX].strip()
