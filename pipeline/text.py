"""Bundle → text: the spec's template in a sandbox. Pure.

What a model reads is cut to the spec's token budget; what is embedded is not.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Number
from typing import Any

import msgspec
from jinja2 import ChainableUndefined, Template, TemplateError, meta
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.core.errors import Poison
from schemas.context import ContextSpec

TEXT_CHARACTERS_MAX = 1_000_000
WORDS = "words"
"""The tokenizer of this module, as a spec names it: a word or a sign is a token; no other undercuts that by much."""
_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class RenderedText:
    """`left_out`: sections that had to go, least important first; `cut`: even the rest was too long and was cut."""

    text: str
    tokens: int
    left_out: tuple[str, ...] = ()
    cut: bool = False


def render_text(
    spec: ContextSpec, bundle: Mapping[str, Any], count: Callable[[str], int] | None = None
) -> RenderedText:
    """`count` is the spec's tokenizer (pipeline.streams.token_counting); words and signs without one.

    Raises Poison when the template fails on this bundle; ValueError when the spec has no text."""
    count = count or count_tokens
    if spec.text is None:
        raise ValueError(f"context {spec.context} declares no text")
    budget, left_out = spec.text.token_budget, []
    remaining: Any = dict(bundle)
    text = render_template(spec.text.template, remaining)
    for section in least_important_first(spec, spec.text.priorities):
        if budget is None or count(text) <= budget:
            break
        without = _without(remaining, section.split("."))
        if without != remaining:
            left_out.append(section)
            remaining = without
            text = render_template(spec.text.template, remaining)
    tokens = count(text)
    if budget is not None and tokens > budget:
        text = _first_words(text, budget, count)
        return RenderedText(text, count(text), tuple(left_out), cut=True)
    return RenderedText(text, tokens, tuple(left_out))


def render_template(template: str, bundle: Mapping[str, Any], characters_max: int = TEXT_CHARACTERS_MAX) -> str:
    """The whole text, without space around it, cut to `characters_max`. Raises Poison when the template fails."""
    try:
        rendered = _template(template).render(bundle)
    except _FAILURES as error:
        raise Poison(f"the text template fails on this bundle: {error}") from error
    return rendered.strip()[:characters_max]


def decode_bundle(body: bytes) -> Any:
    """What a bundle's bytes hold, as a template sees it. A column of JSON can bring what others do not read: halves of
    characters become "?", numbers beyond floats infinite. Raises Poison where even that does not help."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        readable = json.dumps(json.loads(body), ensure_ascii=False).encode("utf-8", "replace")
        return json.loads(readable)
    except (ValueError, RecursionError) as error:
        raise Poison(f"the JSON in this bundle can't be read: {error}") from error


@lru_cache(256)
def names_used(template: str) -> frozenset[str]:
    """Fields and sections of the bundle that a template may look at. Raises TemplateSyntaxError."""
    return frozenset(meta.find_undeclared_variables(_Environment().parse(template)))


def count_tokens(text: str) -> int:
    """Words and signs."""
    return sum(1 for _ in _TOKEN.finditer(text))


def _first_words(text: str, budget: int, count: Callable[[str], int]) -> str:
    """As many words and signs as have so many tokens at most."""
    ends = [0, *(match.end() for match in _TOKEN.finditer(text))]
    kept = max(0, bisect_right(ends, budget, key=lambda end: count(text[:end]) if end else 0) - 1)
    while kept and count(text[: ends[kept]]) > budget:  # a longer text may have fewer tokens where they merge
        kept -= 1
    return text[: ends[kept]]


def least_important_first(spec: ContextSpec, priorities: Sequence[str]) -> list[str]:
    """Sections that `priorities` does not name go first, the last declared first; then the named ones from the end."""
    named = {path.partition(".")[0] for path in priorities}
    unnamed = [name for name in spec.sections if name not in named]
    return [*reversed(unnamed), *reversed(priorities)]


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
    """A bundle's own names go before the methods of a dict (`order.items`); null is written as nothing; the same bundle
    gives the same text."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_written)
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


def _written(value: Any) -> Any:
    return "" if value is None else value


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
