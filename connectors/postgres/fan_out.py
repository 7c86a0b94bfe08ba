"""Measures by SQL how many rows show one row of a section: what copying it would cost per change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from connectors.postgres.catalog import Catalog
from connectors.postgres.server import Server, quote_name, quote_table
from schemas.context import ContextSpec, Section
from schemas.fan_out import FanOut


async def measure_fan_out(dsn: str, spec: ContextSpec, source: str | None = None) -> dict[str, FanOut]:
    """Section path (`order.customer`) → fan-out, for every section whose number decides and whose parent lies in
    `source` (None: all). Raises Retryable, EnvironmentProblem or Fatal as any query of the source.
    """
    wanted = [
        (path, spec.entities[parent].table, spec.entities[parent].key, list(section.on.values()))
        for path, parent, section in deciding_sections(spec.root, spec.sections)
        if source is None or spec.entities[parent].source == source
    ]
    if not wanted:
        return {}
    catalog = Catalog(Server(dsn, source or "check"))
    try:
        return {path: await _measure(catalog, table, key, columns) for path, table, key, columns in wanted}
    finally:
        await catalog.close()


def deciding_sections(
    parent: str, sections: Mapping[str, Section], above: str = ""
) -> Iterator[tuple[str, str, Section]]:
    """(path, parent entity, section) of sections left to `auto` and of those around them, outer ones first. What is
    inside a link that the spec asks for is always part of its fragment: nothing is left to decide there.
    """
    for name, section in sections.items():
        path = f"{above}{name}"
        if section.compose == "link":
            continue
        inner = list(deciding_sections(section.entity, section.sections, f"{path}."))
        if section.compose == "auto" or inner:
            yield path, parent, section
            yield from inner


async def _measure(catalog: Catalog, table: str, key: list[str], columns: list[str]) -> FanOut:
    listed = ", ".join(quote_name(name) for name in columns)
    if set(key) <= set(columns):
        # Nothing to count: no two rows share a primary key. An empty table says nothing.
        found = await catalog.rows(f"SELECT EXISTS (SELECT FROM {quote_table(table)})::int")
        return FanOut(float(found[0][0]), int(found[0][0]))
    present = " AND ".join(f"{quote_name(name)} IS NOT NULL" for name in columns)
    query = (
        "SELECT coalesce(avg(number), 0)::float8, coalesce(max(number), 0)::bigint FROM "
        f"(SELECT count(*) AS number FROM {quote_table(table)} WHERE {present} GROUP BY {listed}) AS counted"
    )
    average, most = (await catalog.rows(query))[0]
    return FanOut(float(average), int(most))
