"""Whose dead letters a command of `ctxpipe dlq` is about, and how a person names one of them.

Of a context, these are the letters of its workers and the rows of its tables that connectors set aside. A letter of the
context or source that was named is called by its number alone, another by name and number: shop/12.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline.core.errors import ConfigError
from pipeline.streams.letter_box import DeadLetterBox
from pipeline.streams.letter_choice import LetterFilter
from pipeline.streams.letters import Heading
from schemas.keys import key_text, root_key_texts

if TYPE_CHECKING:
    from pipeline.core.config import Config
    from schemas.context import ContextSpec

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_LETTER = re.compile(r"(?:([a-z][a-z0-9_]*)/)?(\d+)")


@dataclass(frozen=True, slots=True)
class Scope:
    """`name` is a context, a source, or both; empty: all of them."""

    config: Config
    contexts: Mapping[str, ContextSpec]
    name: str

    @property
    def names(self) -> list[str]:
        """Contexts and sources whose topics are looked into."""
        if not self.name:
            return list(dict.fromkeys([*self.contexts, *self.config.sources]))
        spec = self.contexts.get(self.name)
        sources = [] if spec is None else sorted({entity.source for entity in spec.entities.values()})
        return list(dict.fromkeys([self.name, *(one for one in sources if one in self.config.sources)]))

    def box(self, name: str) -> DeadLetterBox:
        kafka = self.config.kafka
        return DeadLetterBox(kafka.bootstrap_servers, name, **kafka.security)

    def limited(self, wanted: LetterFilter, name: str) -> LetterFilter:
        """Of a source that stands beside a context, only the context's tables."""
        if name == self.name or not self.name:
            return wanted
        spec = self.contexts[self.name]
        topics = {self.config.topic(one.source, one.table) for one in spec.entities.values() if one.source == name}
        return replace(wanted, topics=frozenset(topics))

    def label(self, name: str, number: int) -> str:
        return str(number) if name == self.name else f"{name}/{number}"

    def numbers(self, words: Iterable[str]) -> dict[str, list[int]]:
        """Name → numbers. Raises ConfigError with every word that names no letter."""
        found: dict[str, list[int]] = {}
        mistakes = []
        for word in words:
            match = _LETTER.fullmatch(word)
            name = (match.group(1) or self.name) if match else ""
            if match is None:
                mistakes.append(f"{word!r} names no dead letter; write its number, e.g. 12 or shop/12")
            elif not name:
                mistakes.append(f"{word}: of which context or source? Write NAME/{word}, or `ctxpipe dlq NAME …`")
            elif name not in self.names:
                mistakes.append(f"{word}: no letters of {name!r} here; there are those of {', '.join(self.names)}")
            else:
                found.setdefault(name, []).append(int(match.group(2)))
        if mistakes:
            raise ConfigError(mistakes)
        return found

    def keys_of(self, letter: Heading) -> Sequence[str]:
        """Bundles that a letter names; those of a row that a connector set aside, where the row is a root's own."""
        if letter.bundle_keys or not letter.by_connector:
            return letter.bundle_keys
        row = _key_row(letter.key)
        found: dict[str, None] = {}
        for context, spec in self.contexts.items():
            root = spec.entities[spec.root]
            named = self.name in ("", context, root.source) and all(column in row for column in root.key)
            if named and letter.topic == self.config.topic(root.source, root.table):
                found.update(dict.fromkeys(root_key_texts(spec, [key_text(row[column] for column in root.key)])))
        return list(found)


def scope_of(config_path: str, name: str) -> Scope:
    """Raises ConfigError with the names that there are."""
    from pipeline.core.config import load, load_contexts

    config = load(config_path)
    contexts = load_contexts(config)
    if name and name not in contexts and name not in config.sources:
        known = ", ".join(sorted({*contexts, *config.sources})) or "none"
        raise ConfigError([f"no context or source {name!r}; the configuration has: {known}"])
    return Scope(config, contexts, name)


def moment_ms(text: str, now_ms: int) -> int:
    """2h (ago), or 2026-11-30, or 2026-11-30T08:00+01:00; without a zone in UTC. Raises ValueError."""
    age = _AGE.fullmatch(text.strip())
    if age is not None:
        return now_ms - round(float(age.group(1)) * UNITS_S[age.group(2)] * 1000)
    moment = datetime.fromisoformat(text.strip())
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _key_row(key: str | None) -> dict[str, Any]:
    try:
        row = msgspec.json.decode(key or "null")
    except (msgspec.DecodeError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}
