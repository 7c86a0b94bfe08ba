"""What a search may ask, and everything that is wrong with a question, all at once. No HTTP, no store."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any, Literal

import msgspec

from pipeline.core.errors import CtxpipeError
from pipeline.lookup.keys import MalformedKey, check_key
from pipeline.lookup.options import POSITIONS_MAX
from pipeline.stores.conditions import condition_mistakes
from pipeline.stores.spaces import Comparison, Condition
from schemas.context import ContextSpec

Mode = Literal["auto", "vector", "lexical", "hybrid"]
MODES = ("auto", "vector", "lexical", "hybrid")
COMPARISONS: tuple[Comparison, ...] = ("eq", "in", "lt", "le", "gt", "ge")
K_MAX = 1000
TEXT_CHARACTERS_MAX = 20_000
CONDITIONS_MAX = 32
CHOICES_MAX = 1000
BUDGET_MS_MAX = 60_000
SHAPE = '{"text": "…"}, {"vector": […]} or {"key": "…"}'


class BadSearch(CtxpipeError):
    """The caller's mistakes, each a sentence."""

    exit_code = 2

    def __init__(self, mistakes: list[str]) -> None:
        self.mistakes = mistakes
        super().__init__("; ".join(mistakes))


class SearchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One of `text`, `vector` (of any length but 0) and `key` ("more like this bundle", which itself is no hit).

    `mode` auto: hybrid for a text, else vector. `min_score`: the least cosine, -1 to 1. `space`: the only one that may
    answer. `budget_ms` None: the service's. `mistakes`: what was wrong already when the request was read.
    """

    text: str | None = None
    vector: list[float] | None = None
    key: str | None = None
    k: int = 10
    conditions: tuple[Condition, ...] = ()
    min_score: float | None = None
    mode: Mode = "auto"
    space: str | None = None
    bundles: bool = True
    budget_ms: float | None = None
    position: tuple[str, ...] = ()
    """Tokens of what the answer must have seen (schemas.position)."""
    mistakes: tuple[str, ...] = ()


def request_mistakes(
    request: SearchRequest, spec: ContextSpec, marked: Collection[str] | None, dimension: int | None
) -> list[str]:
    """All of them. `marked` and `dimension` are those of the space that answers, None while none does."""
    mistakes = list(request.mistakes)
    given = [name for name in ("text", "vector", "key") if getattr(request, name) is not None]
    if len(given) != 1 and not mistakes:
        mistakes.append(f"give one of {SHAPE}" + (f", not {' and '.join(given)} together" if given else ""))
    mistakes += _text_mistakes(request.text)
    mistakes += _key_mistakes(request.key, spec)
    mistakes += _vector_mistakes(request.vector, dimension)
    if not 1 <= request.k <= K_MAX:
        mistakes.append(f"k is 1 to {K_MAX:,}, not {request.k:,}")
    if request.min_score is not None and not -1 <= request.min_score <= 1:
        mistakes.append(f"min_score is a cosine, -1 to 1, not {request.min_score:g}")
    if request.min_score is not None and request.mode == "lexical":
        mistakes.append("min_score is a cosine, which a lexical search has none of; leave it out, or the mode")
    if request.mode in ("lexical", "hybrid") and request.vector is not None:
        mistakes.append(f"a vector has no words for mode {request.mode}; use vector or auto")
    if request.budget_ms is not None and not 1 <= request.budget_ms <= BUDGET_MS_MAX:
        mistakes.append(f"budget_ms is 1 to {BUDGET_MS_MAX:,}, not {request.budget_ms:g}")
    if marked is not None:
        mistakes += condition_mistakes(request.conditions, marked)
    return mistakes


def _text_mistakes(text: str | None) -> Iterator[str]:
    if text is not None and not text.strip():
        yield "text is empty; write what is looked for"
    elif text is not None and len(text) > TEXT_CHARACTERS_MAX:
        yield f"text has {len(text):,} characters; at most {TEXT_CHARACTERS_MAX:,} are allowed"


def _key_mistakes(key: str | None, spec: ContextSpec) -> Iterator[str]:
    if key is not None:
        try:
            check_key(spec, key)
        except MalformedKey as error:
            yield str(error)


def _vector_mistakes(vector: list[float] | None, dimension: int | None) -> Iterator[str]:
    if vector is None:
        return
    if dimension is not None and len(vector) != dimension:
        yield f"vector has {len(vector):,} numbers; the space has {dimension}"
    if not all(math.isfinite(number) and abs(number) < 1e18 for number in vector):
        yield "vector has numbers that are not finite, or too large"
    elif not any(vector):
        yield "vector is all zeros, which points nowhere"


def read_request(body: bytes) -> SearchRequest:
    """A JSON object {"text"|"vector"|"key", "k", "filter", "min_score", "mode", "space", "bundles", "budget_ms",
    "position"}.
    What is of a wrong kind is left out and named in `mistakes`. Raises BadSearch for what is no object."""
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadSearch([f"the body is no JSON: {error}"]) from None
    if not isinstance(data, dict):
        raise BadSearch([f"the body is a JSON object with one of {SHAPE}"])
    mistakes: list[str] = []
    taken: dict[str, Any] = {}
    for name, value in data.items():
        if name == "filter":
            taken["conditions"] = tuple(_conditions(value, mistakes))
        elif name == "position":
            taken["position"] = tuple(_positions(value, mistakes))
        elif name not in _KINDS:
            mistakes.append(f"{name!r} is no part of a search; known are {', '.join((*_KINDS, 'filter', 'position'))}")
        elif not _KINDS[name][0](value):
            mistakes.append(f"{name} is {_KINDS[name][1]}")
        else:
            taken[name] = value
    return SearchRequest(**taken, mistakes=tuple(mistakes))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and _is_representable(value)


def _is_representable(value: int | float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _is_optional_number(value: Any) -> bool:
    return value is None or _is_number(value)


_KINDS: dict[str, tuple[Any, str]] = {
    "text": (_is_text, "a text"),
    "vector": (lambda value: isinstance(value, list) and all(map(_is_number, value)), "a list of numbers"),
    "key": (_is_text, "a text"),
    "k": (lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number"),
    "min_score": (_is_optional_number, "a number"),
    "mode": (lambda value: value in MODES, f"one of {', '.join(MODES)}"),
    "space": (lambda value: value is None or _is_text(value), "the id of a space"),
    "bundles": (lambda value: isinstance(value, bool), "true or false"),
    "budget_ms": (_is_optional_number, "a number of milliseconds"),
}


def _positions(value: Any, mistakes: list[str]) -> Iterator[str]:
    """From a text or a list of texts."""
    tokens = value if isinstance(value, list) else [] if value is None else [value]
    if len(tokens) > POSITIONS_MAX:
        mistakes.append(f"{len(tokens):,} positions; at most {POSITIONS_MAX} are taken")
    elif not all(map(_is_text, tokens)):
        mistakes.append("position is a text or a list of texts, as answers and `ctxpipe position` give them")
    else:
        yield from dict.fromkeys(tokens)


def _conditions(value: Any, mistakes: list[str]) -> Iterator[Condition]:
    """From {"field": value | [values] | {"lt": value, …}}."""
    if not isinstance(value, dict):
        mistakes.append('filter is an object: {"field": value}, {"field": [values]} or {"field": {"lt": value}}')
        return
    found = [one for field, wanted in value.items() for one in _conditions_of(field, wanted, mistakes)]
    if len(found) > CONDITIONS_MAX:
        mistakes.append(f"filter has {len(found)} conditions; at most {CONDITIONS_MAX} are allowed")
    yield from found[:CONDITIONS_MAX]


def _conditions_of(field: str, wanted: Any, mistakes: list[str]) -> Iterator[Condition]:
    if not isinstance(wanted, dict):
        wanted = {"in" if isinstance(wanted, list) else "eq": wanted}
    if not wanted:
        mistakes.append(f"filter: {field}: an empty object says nothing; write one of {', '.join(COMPARISONS)}")
    for comparison, value in wanted.items():
        values = value if isinstance(value, list) else [value]
        if comparison not in COMPARISONS:
            mistakes.append(f"filter: {field}: {comparison!r} is no comparison; known are {', '.join(COMPARISONS)}")
        elif len(values) > CHOICES_MAX:
            mistakes.append(f"filter: {field}: {len(values):,} values; at most {CHOICES_MAX:,} are allowed")
        elif not all(one is None or isinstance(one, str | bool) or _is_number(one) for one in values):
            mistakes.append(f"filter: {field}: values are texts, numbers, true, false and null")
        else:
            yield Condition(field, comparison, value)
