"""`ctxpipe get --id` and `--lineage`: the bytes of an answer of the past, and where every value came from."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.lookup.history import Kept, PastBundle
    from pipeline.lookup.lineage import FieldLineage, Lineage
    from pipeline.lookup.opened import OpenContext
    from schemas.context import ContextSpec

VALUE_CHARACTERS_MAX = 40
Records = Mapping[str, Mapping[str, Any]]


async def past_bundle(context: str, text: str, config_path: str) -> tuple[ContextSpec, PastBundle]:
    """Raises ConfigError for what is no id, NotKept, Retryable."""
    async with _kept(context, text, config_path) as (opened, kept):
        return opened.spec, kept.past


async def past_lineage(context: str, text: str, field: str | None, config_path: str) -> list[tuple[Lineage, Records]]:
    """As past_bundle, with Kafka asked for the records of its rows."""
    from pipeline.lookup.lineage import lineage_of

    async with _kept(context, text, config_path) as (opened, kept):
        lineage = await lineage_of(kept)
    return [await _with_records(opened.spec, lineage, field, config_path)]


async def present_lineages(
    context: str, keys: Sequence[str], version: int | None, field: str | None, config_path: str
) -> list[tuple[Lineage, Records] | None]:
    """One per key; None where there is no bundle. Raises ConfigError, Retryable."""
    from pipeline.commands._contexts import spec_named
    from pipeline.core.clock import SystemClock
    from pipeline.core.config import load, load_contexts
    from pipeline.core.errors import ConfigError
    from pipeline.lookup.keys import MalformedKey
    from pipeline.lookup.lineage import lineage_of_key
    from pipeline.lookup.opened import open_context
    from pipeline.lookup.service import LookupService

    config = load(config_path)
    opened = await open_context(config, spec_named(load_contexts(config), context), version=version)
    try:
        lookups = LookupService({context: opened.served}, SystemClock())
        found = [await lineage_of_key(lookups, context, key) for key in keys]
    except MalformedKey as error:
        raise ConfigError([str(error)]) from None
    finally:
        await opened.close()
    return [None if one is None else await _with_records(opened.spec, one, field, config_path) for one in found]


@asynccontextmanager
async def _kept(context: str, text: str, config_path: str) -> AsyncIterator[tuple[OpenContext, Kept]]:
    from pipeline.commands._contexts import spec_named
    from pipeline.core.config import load, load_contexts
    from pipeline.core.errors import ConfigError
    from pipeline.lookup.bundle_ids import BadId, read_id
    from pipeline.lookup.history import find_in, not_kept
    from pipeline.lookup.opened import open_context

    config = load(config_path)
    spec = spec_named(load_contexts(config), context)
    try:
        bundle_id = read_id(text)
    except BadId as error:
        raise ConfigError([str(error)]) from None
    try:
        opened = await open_context(config, spec, version=bundle_id.spec_version)
    except ConfigError as error:
        raise not_kept(context) from error
    try:
        yield opened, await find_in(opened.served, text, bundle_id)
    finally:
        await opened.close()


async def _with_records(
    spec: ContextSpec, lineage: Lineage, field: str | None, config_path: str
) -> tuple[Lineage, Records]:
    import msgspec

    from pipeline.commands._lineage_records import records_of, refuse_unknown
    from pipeline.core.config import load

    lineage = msgspec.structs.replace(lineage, fields=refuse_unknown(lineage, field))
    return lineage, await records_of(load(config_path), spec, lineage)


def show_past(past: PastBundle) -> None:
    """With a line before the bundle that says when it was made, and from what."""
    import msgspec

    from pipeline.lookup.answer import iso_time
    from pipeline.lookup.history import position_of

    sources = ", ".join(f"{name} {_position(position_of(state))}" for name, state in past.sources.items())
    written = f"written {iso_time(past.written_us)}, spec version {past.spec_version}"
    click.echo(f"{past.context} {past.key}: {written}, newest changes: {sources or 'none'}")
    for path, reason in past.left_out.items():
        click.echo(f"left out: {path} ({reason})", err=True)
    click.echo(msgspec.json.format(past.bundle, indent=2).decode())


def show_lineage(lineage: Lineage, records: Records) -> None:
    """A table on a terminal, else one line per field with tabs between the cells."""
    head = f"{lineage.context} {lineage.key}: spec version {lineage.spec_version}, id {lineage.id or 'none'}"
    if lineage.vector is not None:
        whose = "this bundle" if lineage.vector.of_this_bundle else "another state of it"
        head += f", space {lineage.vector.space} has the vector of {whose}"
    click.echo(head)
    titles = ("field", "value", "from", "row", "position", "Kafka", "embedded")
    lines = [_cells(field, records.get(field.path, {})) for field in lineage.fields]
    if not sys.stdout.isatty():
        for line in (titles, *lines):
            click.echo("\t".join(line))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*titles)
    for line in lines:
        table.add_row(*map(escape, line))
    Console().print(table)


def _cells(field: FieldLineage, record: Mapping[str, Any]) -> tuple[str, ...]:
    value, row = bytes(field.value).decode(), field.row
    if len(value) > VALUE_CHARACTERS_MAX:
        value = value[: VALUE_CHARACTERS_MAX - 1] + "…"
    place = f"{record['topic']}/{record['partition']}@{record['offset']}" if "offset" in record else ""
    where = field.reason if row is None else f"all of {row.key}" if row.many else row.key
    position = _position(row.position) if row is not None and not row.many else ""
    embedded = "yes" if field.embedded else ""
    return field.path, value, _origin(field), where, position, place or str(record.get("reason", "")), embedded


def _origin(field: FieldLineage) -> str:
    origin = field.origin
    what = origin.column or ""
    if origin.kind == "value":
        what = f"= {origin.value}"
    elif origin.kind == "aggregate":
        what = f"{origin.function}({origin.column or '*'})" + (f" where {origin.where}" if origin.where else "")
    return f"{origin.source} {origin.table} {what}" + (f", mask {origin.mask}" if origin.mask else "")


def _position(position: Mapping[str, str | None]) -> str:
    time = position.get("commit_time") or position.get("write_time") or "at an unknown time"
    return f"{position['lsn']} of {time}" if "lsn" in position else time
