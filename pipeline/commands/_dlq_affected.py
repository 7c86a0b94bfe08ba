"""Which bundles a dead letter makes wrong now, asked of the stores of the version that serves."""

from __future__ import annotations

import msgspec

from pipeline.affected import Affected, affected_by
from pipeline.commands._dlq_scope import Scope
from pipeline.plan import compile_plan
from pipeline.stores.redis_store import context_settings, make_stores
from pipeline.streams.letters import Heading, Letter, original_record
from pipeline.streams.registry import Registries
from schemas.context import ContextSpec
from schemas.record import Record


async def affected_now(scope: Scope, name: str, heading: Heading, letter: Letter | None) -> dict[str, Affected]:
    """By context: those that use the record's topic. `letter` None: of a connector. Raises Retryable while Redis is
    away."""
    record = record_of(heading, letter)
    if record is None:
        return {}
    found: dict[str, Affected] = {}
    for context, spec in scope.contexts.items():
        topics = {scope.config.topic(entity.source, entity.table) for entity in spec.entities.values()}
        if heading.topic in topics and (heading.by_connector or context == name):
            found[context] = await _of_context(scope, spec, record)
    return found


def record_of(heading: Heading, letter: Letter | None) -> Record | None:
    """As far as it was kept; of a connector's row its key alone."""
    if letter is None:
        key = None if heading.key is None else heading.key.encode()
        return Record(heading.topic, 0, 0, key, None)
    if not letter.truncated:
        return original_record(letter)
    whole_key = letter.key_bytes is not None and letter.key_bytes <= 4096
    kept = msgspec.structs.replace(letter, truncated=False, value=None, key=letter.key if whole_key else None)
    return original_record(kept)


async def _of_context(scope: Scope, spec: ContextSpec, record: Record) -> Affected:
    stores = make_stores(context_settings(scope.config, spec))
    try:
        serving = await stores.serving.current()
        kept = await stores.serving.definition(spec.version if serving is None else serving)
        if kept is not None and kept.spec.version != spec.version:
            await stores.close()
            stores = make_stores(context_settings(scope.config, kept.spec))
        registries = Registries(scope.config)
        served = spec if kept is None else kept.spec
        composition, traced = ({}, ()) if kept is None else (kept.composition, kept.traced)
        plan = compile_plan(served, composition, scope.config.mask_key, registries.formats, traced)
        table = plan.topics.get(record.topic)
        registry = None if table is None else registries.of(table.source)
        if registry is not None:
            await registry.load([record])
        return await affected_by(plan, stores.rows, stores.relations, record)
    finally:
        await stores.close()
