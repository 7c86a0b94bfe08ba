"""Checks of what the flow answered: values, texts, numbers, schemas, fields that may leave, and citations."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.evaluation.checks.check import FLOW_KINDS, Check, Named, failed, passed, verdict
from pipeline.evaluation.checks.json_values import (
    MISSING,
    at,
    first_difference,
    includes,
    is_list,
    same,
    shown,
    texts,
)
from pipeline.evaluation.digests import canonical
from pipeline.evaluation.values import CheckResult, Expectation, Observed
from pipeline.guard.output import Output, of_schema
from pipeline.guard.strict_json import InvalidOutput
from schemas.yaml_file import suggestion

_OUTPUT_BYTES_MAX = 16 * 1024 * 1024
_OUTPUT_DEPTH_MAX = 128


def equals(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    came = at(observed.output, expected.path)
    return verdict(expected, first_difference(expected.value, came, expected.path or ""))


def contains(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    came = at(observed.output, expected.path)
    if isinstance(came, str):
        wanted = expected.value if is_list(expected.value) else [expected.value]
        lacking = [text for text in wanted if not isinstance(text, str) or text not in came]
        return verdict(expected, f"{shown(came)} does not contain {shown(lacking[0])}" if lacking else "")
    if is_list(came):
        held = any(includes(one, expected.value) for one in came)
        return verdict(expected, "" if held else f"{shown(came)} has no element {shown(expected.value)}")
    held = isinstance(came, Mapping) and includes(came, expected.value)
    return verdict(expected, "" if held else f"{shown(came)} does not include {shown(expected.value)}")


def absent(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    """Without a value: nothing is at the path. With texts: none of them occurs there, in no key and no value; of a
    retrieval none of them is a hit."""
    if "value" not in expected.model_fields_set:
        came = at(observed.output, expected.path)
        return verdict(
            expected, "" if came is MISSING else f"{expected.path} should not be there, and is {shown(came)}"
        )
    banned = [expected.value] if isinstance(expected.value, str) else list(expected.value)
    if observed.hits:
        keys = {key for key, _ in observed.hits}
        found = [text for text in banned if text in keys]
        return verdict(expected, f"{shown(found)} must not be found, and were" if found else "")
    there = list(texts(at(observed.output, expected.path)))
    found = [text for text in banned if any(text in one for one in there)]
    return verdict(expected, f"{shown(found)} must not occur, and do" if found else "")


def matches(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    came = at(observed.output, expected.path)
    if not isinstance(came, str):
        return failed(expected, f"{expected.path or 'the output'} is {shown(came)}, no text")
    held = re.search(expected.value, came) is not None
    return verdict(expected, "" if held else f"{shown(came)} does not match {expected.value}")


def number(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    came = at(observed.output, expected.path)
    if isinstance(came, bool) or not isinstance(came, int | float) or not math.isfinite(came):
        return failed(expected, f"{expected.path or 'the output'} is {shown(came)}, no number")
    tolerance = expected.tolerance or 0.0
    near = abs(came - expected.value) <= tolerance
    told = f"{expected.path or 'the output'} is {came}, expected {expected.value} ± {tolerance}"
    return verdict(expected, "" if near else told)


def schema(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    came = at(observed.output, expected.path)
    if came is MISSING:
        return failed(expected, f"there is nothing at {expected.path}")
    try:
        text = canonical(came).decode()
        _output(expected.value, canonical(suite.schemas[expected.value])).check(text)
    except (InvalidOutput, ValueError) as error:
        return failed(expected, f"it does not fit the schema {expected.value}: {error}")
    return passed(expected)


def fields_allowed(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    allowed = [pattern.split("/")[1:] for pattern in expected.value]
    outside = sorted(
        {
            "/" + "/".join(names)
            for names, could_hold in _fields(at(observed.output, expected.path))
            if not any(_allows(one, names, could_hold) for one in allowed)
        }
    )
    return verdict(expected, f"outside of the allow-list: {', '.join(outside[:5])}" if outside else "")


def citations(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    """Each is a text that occurs in what was seen, or an object with `source` (context/key), and `pointer` and `quote`
    or `value` as far as it has them."""
    came = at(observed.output, expected.path)
    if not is_list(came):
        return failed(expected, f"{expected.path or 'the output'} is {shown(came)}, no list of citations")
    least = 1 if expected.value is None else expected.value
    if len(came) < least:
        return failed(expected, f"it cites {len(came)} times, expected at least {least}")
    wrong = [told for one in came if (told := _citation_mistake(one, observed.seen))]
    return verdict(expected, "; ".join(wrong[:3]))


def _citation_mistake(citation: Any, seen: Mapping[str, Any]) -> str:
    if isinstance(citation, str):
        return "" if _occurs(citation, list(seen.values())) else f"{shown(citation)} is in nothing that was seen"
    if not isinstance(citation, Mapping) or not isinstance(citation.get("source"), str):
        return f"{shown(citation)} is no citation: a text, or an object with a source"
    source = citation["source"]
    if source not in seen:
        return f"{source} was not seen{suggestion(source, seen)}"
    part, pointer = seen[source], citation.get("pointer")
    if pointer is not None:
        part = at(part, pointer) if isinstance(pointer, str) and pointer.startswith("/") else MISSING
        if part is MISSING:
            return f"{source} has nothing at {shown(pointer)}"
    if "value" in citation and not same(citation["value"], part):
        return f"{source}{pointer or ''} is {shown(part)}, not {shown(citation['value'])}"
    quote = citation.get("quote")
    if quote is not None and not _occurs(quote, part):
        return f"{shown(quote)} is not in {source}{pointer or ''}"
    return "" if pointer is not None or quote is not None else f"{source} is cited without a pointer or a quote"


def _occurs(quote: Any, part: Any) -> bool:
    return isinstance(quote, str) and bool(quote.strip()) and any(quote in text for text in texts(part))


@lru_cache(maxsize=256)
def _output(name: str, schema_bytes: bytes) -> Output:
    return of_schema(name, json.loads(schema_bytes), _OUTPUT_BYTES_MAX, _OUTPUT_DEPTH_MAX)


def schema_mistake(name: str, value: Any) -> str:
    """Why it can't be used as a JSON Schema, "" where it can."""
    try:
        _output(name, canonical(value))
    except (ConfigError, ValueError) as error:
        return str(error)
    return ""


def _fields(value: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool]]:
    """(names down to it, whether it could hold more) of what holds nothing else; positions in lists don't count."""
    inner = [((*names, key), one) for key, one in value.items()] if isinstance(value, Mapping) else []
    inner += [(names, one) for one in value] if is_list(value) else []
    if not inner:
        yield names, isinstance(value, Mapping) or is_list(value)
    for path, one in inner:
        yield from _fields(one, path)


def _allows(pattern: list[str], names: tuple[str, ...], could_hold: bool) -> bool:
    """An empty object or list may also stand on the way to a field."""
    open_ended = pattern[-1:] == ["**"]
    wanted = pattern[:-1] if open_ended else pattern
    if len(names) > len(wanted) and not open_ended:
        return False
    if len(names) < len(wanted) and not could_hold:
        return False
    return all(one in ("*", name) for one, name in zip(wanted, names, strict=False))


def _text_or_texts(expected: Expectation, suite: Named) -> Iterator[str]:
    value = expected.value
    if not (isinstance(value, str) or (is_list(value) and value and all(isinstance(one, str) for one in value))):
        yield f"value has to be a text or a list of texts, not {shown(value)}"


def _absent_mistakes(expected: Expectation, suite: Named) -> Iterator[str]:
    if "value" in expected.model_fields_set:
        yield from _text_or_texts(expected, suite)
    elif not expected.path:
        yield "it needs a path where nothing may be, or the texts that may not occur as value"


def _pattern_mistakes(expected: Expectation, suite: Named) -> Iterator[str]:
    if not isinstance(expected.value, str):
        yield f"value has to be a regular expression, not {shown(expected.value)}"
        return
    try:
        re.compile(expected.value)
    except re.error as error:
        yield f"{expected.value!r} is no regular expression: {error}"


def _number_mistakes(expected: Expectation, suite: Named) -> Iterator[str]:
    if isinstance(expected.value, bool) or not isinstance(expected.value, int | float):
        yield f"value has to be a number, not {shown(expected.value)}"


def _schema_mistakes(expected: Expectation, suite: Named) -> Iterator[str]:
    if expected.value not in suite.schemas:
        hint = suggestion(expected.value, suite.schemas) or "; suite.yaml names them under schemas:"
        yield f"value has to name a schema of the suite, and there is none {shown(expected.value)}{hint}"


def _allow_list_mistakes(expected: Expectation, suite: Named) -> Iterator[str]:
    value = expected.value
    if not is_list(value) or not value or not all(isinstance(one, str) and one.startswith("/") for one in value):
        yield 'value has to be a list of pointers such as ["/answer", "/citations/source", "/detail/**"]'


def _count_mistakes(expected: Expectation, suite: Named) -> Iterator[str]:
    value = expected.value
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        yield f"value is how many citations there are at least, not {shown(value)}"


CHECKS = (
    Check("equals", FLOW_KINDS, equals, ("path", "value"), ("value",)),
    Check("contains", FLOW_KINDS, contains, ("path", "value"), ("value",)),
    Check("absent", (*FLOW_KINDS, "retrieval"), absent, ("path", "value"), (), _absent_mistakes),
    Check("matches", FLOW_KINDS, matches, ("path", "value"), ("value",), _pattern_mistakes),
    Check("number", FLOW_KINDS, number, ("path", "value", "tolerance"), ("value",), _number_mistakes),
    Check("schema", FLOW_KINDS, schema, ("path", "value"), ("value",), _schema_mistakes),
    Check("fields_allowed", FLOW_KINDS, fields_allowed, ("path", "value"), ("value",), _allow_list_mistakes),
    Check("citations", FLOW_KINDS, citations, ("path", "value"), (), _count_mistakes),
)
