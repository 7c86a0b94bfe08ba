"""Bundle → the text that is embedded, with the values that a search may be narrowed by. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from pipeline.core.errors import Poison
from pipeline.splicing import splice
from pipeline.stores.store import Fetched
from pipeline.text import TEXT_CHARACTERS_MAX, decode_bundle, render_template
from schemas.bundle import Stored
from schemas.vectors import TEXT_HASH_BYTES, FilterValue, hash_text

FILTER_CHARACTERS_MAX = 1_000
FILTER_VALUES_MAX = 1_000
FILTER_INTEGERS = range(-(1 << 63), 1 << 64)
_RENDERED_CHARACTERS_MAX = 1 << 40
"""None: what is too much is cut here, where it is counted."""


@dataclass(frozen=True, slots=True)
class EmbeddedText:
    """`text` may be empty; `characters_cut` of it were too many. `commit_time_us`: the newest change in the bundle and
    its fragments, 0 unknown."""

    text: str
    text_hash: str
    filters: dict[str, FilterValue | list[FilterValue]]
    filters_hash: str
    commit_time_us: int
    characters_cut: int


class TextMaker:
    """Of one space. `empty` has the bytes of every linked section without a fragment; `traced` the paths of linked
    sections that the text may be made from: see schemas.definition."""

    def __init__(
        self, template: str, filters: Sequence[str], empty: Mapping[str, bytes], traced: Sequence[str] = ()
    ) -> None:
        self._template, self._filters = template, tuple(filters)
        self._empty, self._traced = empty, frozenset(traced)

    def looks_elsewhere(self, bundle: Stored) -> bool:
        """Whether the text can change while the bundle itself does not: it shows a fragment."""
        return bundle.meta is not None and any(reference.unit in self._traced for reference in bundle.meta.fragments)

    def make(self, fetched: Fetched) -> EmbeddedText:
        """Of a live bundle. Raises Poison when the template fails on it, or a value to filter by is no such value."""
        bundle = fetched.bundle
        assert bundle is not None and bundle.meta is not None, "a deleted bundle has no text"
        body = splice(bundle.body, bundle.meta.fragments, fetched.fragments, self._empty)
        values = decode_bundle(body)
        whole = render_template(self._template, values, _RENDERED_CHARACTERS_MAX)
        text = whole[:TEXT_CHARACTERS_MAX]
        filters = {path: _filter_value(values, path) for path in self._filters}
        return EmbeddedText(
            text,
            hash_text(text) if text else "",
            filters,
            _hash_filters(filters) if text else "",
            _commit_time_us(fetched),
            len(whole) - len(text),
        )


def _commit_time_us(fetched: Fetched) -> int:
    stored = [fetched.bundle, *fetched.fragments.values()]
    metas = [one.meta for one in stored if one is not None and one.meta is not None]
    return max((source.commit_time_us for meta in metas for source in meta.sources.values()), default=0)


def _hash_filters(filters: Mapping[str, Any]) -> str:
    if not filters:
        return ""
    encoded = msgspec.json.encode(filters, order="sorted")
    return hashlib.blake2b(encoded, digest_size=TEXT_HASH_BYTES).hexdigest()


def _filter_value(values: Mapping[str, Any], path: str) -> FilterValue | list[FilterValue]:
    """What stands at a path with dots; of the items of a list, all of theirs, each once, sorted."""
    found = list(_values_at(values, path.split(".")))
    for value in found:
        if isinstance(value, dict):
            raise Poison(
                f"the filter {path} is a section; name one of its fields, as {path}.{next(iter(value), 'name')}"
            )
        if isinstance(value, str) and len(value) > FILTER_CHARACTERS_MAX:
            raise Poison(
                f"the filter {path} has a value of {len(value):,} characters; at most {FILTER_CHARACTERS_MAX:,} are "
                "taken. Filter by another field."
            )
        if isinstance(value, int) and value not in FILTER_INTEGERS:
            raise Poison(f"the filter {path} has a whole number of more than 64 bits; filter by another field")
    if not _in_a_list(values, path.split(".")):
        return found[0] if found else None
    distinct = {(type(value).__name__, value): value for value in found if value is not None}
    if len(distinct) > FILTER_VALUES_MAX:
        raise Poison(f"the filter {path} has {len(distinct):,} values; at most {FILTER_VALUES_MAX:,} are taken")
    return [distinct[identity] for identity in sorted(distinct)]


def _values_at(value: Any, path: Sequence[str]) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _values_at(item, path)
    elif not path:
        yield value
    elif isinstance(value, dict) and path[0] in value:
        yield from _values_at(value[path[0]], path[1:])


def _in_a_list(value: Any, path: Sequence[str]) -> bool:
    for name in path:
        if isinstance(value, list):
            return True
        value = value.get(name) if isinstance(value, dict) else None
    return isinstance(value, list)
