"""Measures by SQL how many rows show one row of a section: what copying it would cost per change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from connectors.postgres.catalog import Catalog
from connectors.postgres.server import Server, quote_name, quote_table
from schemas.context import ContextSpec, Section

COPY_AVERAGE_MAX = 32
COPY_MAX = 1000
"""A section is copied while one change rewrites at most so many parents, on average and at worst."""


class FanOut(msgspec.Struct, frozen=True):
    """Parents per join value: a change of the section's row rewrites so many when copied, one fragment when linked."""

    average: float
    most: int

    @property
    def composition(self) -> str:
        """What `compose: auto` becomes: copy or link."""
        return "copy" if self.average <= COPY_AVERAGE_MAX and self.most <= COPY_MAX else "link"

    def writes_per_change(self, composition: str) -> float:
        return self.average if composition == "copy" else 1.0

    def reads_per_lookup(self, composition: str) -> int:
        """Beside the bundle itself."""
        return 0 if composition == "copy" else 1


async def measure_fan_out(dsn: str, spec: ContextSpec, source: str | None = None) -> dict[str, FanOut]:
    """Section path (`order.customer`) → fan-out, for every section with `compose: auto` whose parent lies in `source`
    (None: all). Raises Retryable, EnvironmentProblem or Fatal as any query of the source.
    """
    catalog = Catalog(Server(dsn, source or "check"))
    try:
        found = {}
        for path, parent, section in auto_sections(spec.root, spec.sections):
            entity = spec.entities[parent]
            if source is None or entity.source == source:
                found[path] = await _measure(catalog, entity.table, list(section.on.values()))
    finally:
        await catalog.close()
    return found


def auto_sections(parent: str, sections: Mapping[str, Section], above: str = "") -> Iterator[tuple[str, str, Section]]:
    """(path, parent entity, section) of every section left to `auto`, outer ones first."""
    for name, section in sections.items():
        path = f"{above}{name}"
        if section.compose == "auto":
            yield path, parent, section
        yield from auto_sections(section.entity, section.sections, f"{path}.")


async def _measure(catalog: Catalog, table: str, columns: list[str]) -> FanOut:
    listed = ", ".join(quote_name(name) for name in columns)
    present = " AND ".join(f"{quote_name(name)} IS NOT NULL" for name in columns)
    query = (
        "SELECT coalesce(avg(number), 0)::float8, coalesce(max(number), 0)::bigint FROM "
        f"(SELECT count(*) AS number FROM {quote_table(table)} WHERE {present} GROUP BY {listed}) AS counted"
    )
    average, most = (await catalog.rows(query))[0]
    return FanOut(float(average), int(most))
