"""A case's context → for every context of the suite, what its stores hold. Made once per file, and kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from pipeline.bundle import empty_bytes
from pipeline.evaluation.values import Case
from pipeline.evaluation.world.files import WorldError, read_bundles, read_log
from pipeline.evaluation.world.fixed import stored_bundles
from pipeline.evaluation.world.replay import Replayed, straight
from pipeline.plan import Plan, compile_plan
from pipeline.splicing import splice
from pipeline.stores.store import AppliedPosition, Fetched, Partition
from pipeline.text import WORDS, count_tokens
from schemas.bundle import ROOT_UNIT, Stored, UnitKey, encode_stored
from schemas.context import ContextSpec
from schemas.record import Record

MASK_SECRET = b"ctxpipe evaluation"
"""No secret: masked fields of a suite are the same everywhere."""


class SuiteFiles(Protocol):
    """What of a suite the world needs."""

    @property
    def specs(self) -> Mapping[str, ContextSpec]: ...

    def file(self, relative: str) -> Path: ...


@dataclass(frozen=True)
class Filled:
    """One context, filled. `lag_us`: by source, how much older its changes are than those of the newest; None: nobody
    knows how old. `applied`: how far the log's partitions went; empty of fixed bundles."""

    plan: Plan
    values: Mapping[UnitKey, Stored]
    applied: Mapping[Partition, AppliedPosition] = field(default_factory=dict)
    lag_us: Mapping[str, int | None] = field(default_factory=dict)

    @property
    def spec(self) -> ContextSpec:
        return self.plan.spec

    @cached_property
    def empty(self) -> dict[str, bytes]:
        return {node.path: empty_bytes(node) for node in self.plan.nodes if node.path}

    @cached_property
    def encoded(self) -> dict[UnitKey, bytes]:
        """As they lie in the store; what has been deleted keeps its counter there."""
        return {key: encode_stored(stored) for key, stored in self.values.items()}

    @cached_property
    def keys(self) -> list[str]:
        """Of the bundles that exist."""
        return sorted(key.key for key, stored in self.values.items() if key.unit == ROOT_UNIT and not stored.deleted)

    def fetched(self, key: str) -> Fetched:
        bundle = self._live(UnitKey(ROOT_UNIT, key))
        references = [] if bundle is None or bundle.meta is None else bundle.meta.fragments
        fragments = {
            (reference.unit, reference.key): stored
            for reference in references
            if reference.key is not None and (stored := self._live(UnitKey(reference.unit, reference.key))) is not None
        }
        return Fetched(bundle, fragments)

    def body(self, key: str) -> bytes | None:
        """The bundle's final bytes; None where there is none."""
        fetched = self.fetched(key)
        if fetched.bundle is None or fetched.bundle.meta is None:
            return None
        return splice(fetched.bundle.body, fetched.bundle.meta.fragments, fetched.fragments, self.empty)

    def _live(self, key: UnitKey) -> Stored | None:
        stored = self.values.get(key)
        return None if stored is None or stored.deleted else stored


@dataclass
class Kept:
    """What has been made for one suite: files are frozen while it runs."""

    suite: SuiteFiles
    plans: dict[str, Plan] = field(default_factory=dict)
    logs: dict[str, list[Record]] = field(default_factory=dict)
    filled: dict[tuple[str, int | None], dict[str, Filled]] = field(default_factory=dict)
    corpora: dict[tuple[str, int | None, str], Any] = field(default_factory=dict)


_kept: list[Kept] = []


def kept(suite: SuiteFiles) -> Kept:
    """Of the suite that was asked for last: another one takes its place."""
    if not _kept or _kept[0].suite is not suite:
        _kept[:] = [Kept(suite)]
    return _kept[0]


def forget() -> None:
    """For whoever changes the code between two runs of a suite in one process: what was made before is made anew."""
    _kept.clear()


def source_of(case: Case) -> tuple[str, int | None]:
    """The file that a case's context comes from, "" for none, and how much of it. Raises WorldError."""
    context = case.context
    if context.events is not None and context.bundles is not None:
        raise WorldError([f"{case.id}: context has both 'events' and 'bundles'; give one"])
    if context.bundles is not None and context.until is not None:
        raise WorldError([f"{case.id}: context: 'until' counts records of 'events'; take it out"])
    return context.events or context.bundles or "", context.until


async def fill(suite: SuiteFiles, case: Case) -> dict[str, Filled]:
    """Of every context of the suite, by name. Raises WorldError."""
    known, source = kept(suite), source_of(case)
    found = known.filled.get(source)
    if found is None:
        if case.context.events is not None:
            found = await _from_log(suite, case)
        elif case.context.bundles is not None:
            found = _from_bundles(suite, case.context.bundles)
        else:
            found = {name: Filled(plan_of(suite, name), {}) for name in suite.specs}
        known.filled[source] = found
    return found


def plan_of(suite: SuiteFiles, context: str) -> Plan:
    """Compiled once."""
    plans = kept(suite).plans
    if context not in plans:
        spec = suite.specs[context]
        counts = spec.text is not None and spec.text.tokenizer == WORDS
        plans[context] = compile_plan(spec, mask_secret=MASK_SECRET, count=count_tokens if counts else None)
    return plans[context]


def log_of(suite: SuiteFiles, case: Case) -> list[Record]:
    """The records of a case's log, up to its `until`. Raises WorldError."""
    name, until = source_of(case)
    logs = kept(suite).logs
    if name not in logs:
        logs[name] = read_log(suite.file(name), name)
    records = logs[name]
    if until is not None and until > len(records):
        raise WorldError([f"{case.id}: context: until {until} is behind the end of {name}, of {len(records)} records"])
    topics = {topic for context in suite.specs for topic in plan_of(suite, context).topics}
    if records and not any(record.topic in topics for record in records):
        told = ", ".join(sorted({record.topic for record in records})[:5])
        raise WorldError([f"{name}: no context of the suite reads its topics ({told}); they read {', '.join(topics)}"])
    return records if until is None else records[:until]


async def _from_log(suite: SuiteFiles, case: Case) -> dict[str, Filled]:
    records = log_of(suite, case)
    found = {}
    for name in suite.specs:
        plan = plan_of(suite, name)
        done: Replayed = await straight(plan, records)
        found[name] = Filled(plan, done.values, done.applied)
    return found


def _from_bundles(suite: SuiteFiles, name: str) -> dict[str, Filled]:
    lines = read_bundles(suite.file(name), name)
    plans = {context: plan_of(suite, context) for context in suite.specs}
    fixed = stored_bundles(lines, name, plans)
    return {context: Filled(plans[context], one.values, {}, one.lag_us) for context, one in fixed.items()}
