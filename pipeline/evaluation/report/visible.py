"""Text of models made fit to be looked at: nothing invisible, nothing endless, no lines without end."""

from __future__ import annotations

import json
import textwrap
import unicodedata
from typing import Any

from pipeline.evaluation.baseline import OUTPUT_CHARACTERS_MAX, BlessedCase
from pipeline.evaluation.values import CaseResult

HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
r"""Categories of characters that steer what is shown instead of being shown: escapes of terminals, marks that turn the
direction of writing, tags, halves of pairs."""
KEPT = frozenset("\n\t")


def visible(text: str) -> str:
    r"""With \u202e in place of what would not be seen."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character if character in KEPT or unicodedata.category(character) not in HIDDEN else _escape(character)
        for character in text
    )


def cut(text: str, characters_max: int) -> str:
    if len(text) <= characters_max:
        return text
    return f"{text[:characters_max]}… ({len(text) - characters_max:,} more characters)"


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters; leading spaces are kept, and nothing else is lost."""
    lines: list[str] = []
    for line in text.split("\n"):
        lines += textwrap.wrap(line, width, replace_whitespace=False, drop_whitespace=False, tabsize=2) or [""]
    return lines


def value_text(value: Any, characters_max: int) -> str:
    """A JSON value for people: a key a line, sorted, so that two of them can be laid side by side."""
    try:
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        text = f"(can't be shown as JSON: {error})"
    return visible(cut(text, characters_max))


def output_texts(before: BlessedCase | None, now: CaseResult | None, characters_max: int) -> tuple[str, str]:
    """(baseline's output, output now), both laid out alike; "" where there is none."""
    if before is not None and before.characters is not None:
        beginning = f"{before.output}… ({before.characters - len(str(before.output)):,} more characters)"
        return visible(cut(beginning, characters_max)), visible(_as_cut(now, characters_max))
    left = value_text(before.output, characters_max) if before is not None else ""
    return left, value_text(now.output, characters_max) if now is not None else ""


def _as_cut(now: CaseResult | None, characters_max: int) -> str:
    """As a baseline keeps long outputs, so that the beginnings can be compared."""
    if now is None:
        return ""
    text = json.dumps(now.output, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return cut(text, min(characters_max, OUTPUT_CHARACTERS_MAX))


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"
