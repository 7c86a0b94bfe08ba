"""Bundles as a reader gets them → as they lie in the stores: linked sections apart, under their own keys. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pipeline.bundle import empty_bytes
from pipeline.evaluation.world.files import BundleLine, WorldError, meant
from pipeline.lookup.answer import hash_of
from pipeline.lookup.keys import MalformedKey, check_key
from pipeline.plan import Plan
from schemas.bundle import ROOT_UNIT, FragmentReference, Meta, Stored, UnitKey
from schemas.context import ContextSpec, FieldSpec
from schemas.keys import root_key_texts, tenant_text

COUNTER = 1
"""Of fixed bundles, which are written once."""

_Parts = dict[str, msgspec.Raw]
_DECODE_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_ENCODE = msgspec.json.encode


@dataclass
class Fixed:
    """Of one context. `lag_us`: see Filled."""

    values: dict[UnitKey, Stored] = field(default_factory=dict)
    lag_us: dict[str, int | None] = field(default_factory=dict)


@dataclass
class _Cut:
    """A bundle's bytes without those of its linked sections, which `fragments` has."""

    body: bytearray = field(default_factory=bytearray)
    references: list[FragmentReference] = field(default_factory=list)
    fragments: dict[UnitKey, bytes] = field(default_factory=dict)


def stored_bundles(lines: Sequence[tuple[int, BundleLine]], name: str, plans: Mapping[str, Plan]) -> dict[str, Fixed]:
    """Of every context in `plans`. `name` is what messages call the file. Raises WorldError with all mistakes."""
    found = {context: Fixed() for context in plans}
    times: dict[str, list[Mapping[str, int | None] | int | None]] = {context: [] for context in plans}
    written: dict[tuple[str, UnitKey], int] = {}
    mistakes: list[str] = []
    for number, line in lines:
        plan = plans.get(line.context)
        if plan is None:
            mistakes.append(f"{name}:{number}: no context {line.context!r} in the suite; {meant(line.context, plans)}")
            continue
        wrong = _mistakes(line, plan)
        mistakes += [f"{name}:{number}: {one}" for one in wrong]
        if wrong:
            continue
        times[line.context].append(line.as_of_us)
        fixed = found[line.context]
        for key, stored in _stored(line, plan).items():
            known = fixed.values.setdefault(key, stored)
            first = written.setdefault((line.context, key), number)
            if first != number and (key.unit == ROOT_UNIT or known.body != stored.body):
                what = f"fragment {key.unit} {key.key}" if key.unit else f"bundle {key.key}"
                mistakes.append(f"{name}:{number}: {what} of {line.context} stands in line {first} already")
    if mistakes:
        raise WorldError(mistakes)
    for context, plan in plans.items():
        found[context].lag_us = _lags(plan.spec, times[context])
    return found


def _mistakes(line: BundleLine, plan: Plan) -> list[str]:
    spec, mistakes = plan.spec, list[str]()
    try:
        check_key(spec, line.key)
    except MalformedKey as error:
        mistakes.append(str(error))
    data = _DECODE_OBJECT(bytes(line.data))
    names = [_name(one) for one in spec.fields] + list(spec.sections)
    mistakes += [f"{spec.context} has no field {one!r}; {meant(one, names)}" for one in data if one not in names]
    sections = {node.path: node for node in plan.nodes if node.path}
    for path, key in line.fragments.items():
        node = sections.get(path)
        if node is None:
            mistakes.append(f"fragments: {spec.context} has no section {path!r}; {meant(path, sections)}")
            continue
        outer = [other for other in line.fragments if path.startswith(f"{other}.")]
        if outer:
            mistakes.append(f"fragments: {path} lies in {outer[0]}, which is one already; take one of them out")
        value = _at(bytes(line.data), path.split("."))
        if value is None:
            mistakes.append(f"fragments: {path} is not in 'data', or in a list, whose items have their own keys")
        elif key is None and value != empty_bytes(node):
            mistakes.append(f"fragments: {path} links to nothing, so in 'data' it is {empty_bytes(node).decode()}")
    sources = sorted({entity.source for entity in spec.entities.values()})
    if isinstance(line.as_of_us, dict):
        strange = [source for source in line.as_of_us if source not in sources]
        mistakes += [f"as_of_us: {spec.context} has no source {one!r}; {meant(one, sources)}" for one in strange]
    if spec.tenant is not None and line.tenant is None and spec.tenant not in data:
        mistakes.append(f"{spec.context} keeps tenants apart by {spec.tenant}, which 'data' lacks: add 'tenant'")
    return mistakes


def _stored(line: BundleLine, plan: Plan) -> dict[UnitKey, Stored]:
    spec, cut = plan.spec, _Cut()
    _write(cut, bytes(line.data), line.fragments, "")
    tenant = line.tenant
    if tenant is None and spec.tenant is not None:
        tenant = tenant_text(msgspec.json.decode(_DECODE_OBJECT(bytes(line.data))[spec.tenant]))
    body = bytes(cut.body)
    meta = Meta(hash_of(body), spec.version, fragments=cut.references, tenant=tenant)
    found = {UnitKey(ROOT_UNIT, root_key_texts(spec, [line.key])[0]): Stored(COUNTER, meta, body)}
    for key, data in cut.fragments.items():
        found[key] = Stored(COUNTER, Meta(hash_of(data), spec.version), data)
    return found


def _write(cut: _Cut, data: bytes, fragments: Mapping[str, str | None], before: str) -> None:
    """Appends an object; what is no linked section, and holds none, stays byte for byte."""
    cut.body += b"{"
    for number, (name, value) in enumerate(_DECODE_OBJECT(data).items()):
        path = f"{before}{name}"
        cut.body += (b"," if number else b"") + _ENCODE(name) + b":"
        if path in fragments:
            key = fragments[path]
            cut.references.append(FragmentReference(len(cut.body), path, key))
            if key is not None:
                cut.fragments[UnitKey(path, key)] = bytes(value)
        elif any(other.startswith(f"{path}.") for other in fragments):
            _write(cut, bytes(value), fragments, f"{path}.")
        else:
            cut.body += bytes(value)
    cut.body += b"}"


def _at(data: bytes, path: Sequence[str]) -> bytes | None:
    """The bytes at a path through objects; None where there are none."""
    for name in path:
        if not data.startswith(b"{"):
            return None
        parts: _Parts = _DECODE_OBJECT(data)
        if name not in parts:
            return None
        data = bytes(parts[name])
    return data


def _lags(spec: ContextSpec, times: Sequence[Any]) -> dict[str, int | None]:
    """One reading of positions tells the age of all bundles: what is true of all of them is the oldest."""
    sources = sorted({entity.source for entity in spec.entities.values()})
    oldest: dict[str, int | None] = {}
    for source in sources:
        told = [one.get(source) if isinstance(one, Mapping) else one for one in times if one is not None]
        known = [time_us for time_us in told if time_us is not None]
        oldest[source] = None if len(known) < len(told) else min(known, default=0)
    newest = max((time_us for time_us in oldest.values() if time_us is not None), default=0)
    return {source: None if time_us is None else newest - time_us for source, time_us in oldest.items()}


def _name(one: FieldSpec) -> str:
    return one if isinstance(one, str) else str(getattr(one, "name", one))
