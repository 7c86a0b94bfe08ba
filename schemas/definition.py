"""What a context version was built from, kept beside its state, so that everybody means the same by its number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic import ValidationError

from schemas.context import ContextSpec, Section
from schemas.errors import DecodeError

_SHAPING = ("root", "entities", "fields", "tenant", "text")


@dataclass(frozen=True, slots=True)
class Definition:
    """`composition`: section path → copy or link, as all workers of the version write it. `traced`: paths of linked
    sections from whose fragments the way back to the bundles is kept, because embedded texts are made from them.
    `tokenizer`: a digest of what counts tokens, "" where the spec names none."""

    spec: ContextSpec
    composition: dict[str, str]
    traced: tuple[str, ...] = ()
    tokenizer: str = ""


class _Wire(msgspec.Struct, frozen=True):
    spec: msgspec.Raw
    composition: dict[str, str]
    traced: tuple[str, ...] = ()
    tokenizer: str = ""


def encode_definition(definition: Definition) -> bytes:
    """One JSON object; what the spec leaves to its defaults is left out."""
    spec = definition.spec.model_dump_json(exclude_defaults=True).encode()
    return msgspec.json.encode(
        _Wire(msgspec.Raw(spec), definition.composition, definition.traced, definition.tokenizer)
    )


def decode_definition(data: bytes) -> Definition:
    """Raises DecodeError for what another release wrote and this one does not know."""
    try:
        wire = msgspec.json.decode(data, type=_Wire)
        spec = ContextSpec.model_validate_json(bytes(wire.spec))
        return Definition(spec, wire.composition, wire.traced, wire.tokenizer)
    except (msgspec.DecodeError, ValidationError) as error:
        raise DecodeError(f"the stored definition can't be read: {error}") from error


def changed_parts(one: ContextSpec, other: ContextSpec) -> list[str]:
    """Where two specs make different bundles: `fields`, `sections.plane`. Description and serving make none, and how
    long history is kept makes none either."""
    changed = [part for part in _SHAPING if _text(one, part) != _text(other, part)]
    if one.names_rows != other.names_rows:
        changed.append("history.lineage")
    return changed + _changed_sections(one.sections, other.sections)


def _changed_sections(one: dict[str, Section], other: dict[str, Section]) -> list[str]:
    names = list(dict.fromkeys([*one, *other]))
    changed = [f"sections.{name}" for name in names if _json(one.get(name)) != _json(other.get(name))]
    # Their order is the order in the bundle.
    return changed if changed or list(one) == list(other) else ["the order of sections"]


def _text(spec: ContextSpec, part: str) -> str:
    dumped: dict[str, Any] = spec.model_dump(mode="json", include={part}, exclude_defaults=True)
    return msgspec.json.encode(dumped, order="sorted" if part == "entities" else None).decode()


def _json(section: Section | None) -> str | None:
    return None if section is None else section.model_dump_json(exclude_defaults=True)
