"""One version of a context as lookups see it: its spec, what they read from, and what is known of it meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from pipeline.lookup.applied_watch import AppliedWatch, Seen, topics_of
from pipeline.lookup.ladder import Ladder, Rungs, StoreRung
from pipeline.stores.spaces import SpaceStore, VectorStateStore
from pipeline.stores.store import BundleReader
from schemas.context import ContextSpec, Section
from schemas.keys import decimal_columns, root_key_texts
from schemas.topics import dirty_topic

KEYS_REMEMBERED = 50_000


@dataclass
class ServedContext:
    """`empty` holds, per unit, the bytes that stand in for a fragment that does not exist (bundle.empty_bytes);
    `queries` counts those that read from it now. `spaces` and `states` are there where the context embeds. `rungs` are
    the ways to a bundle beside the reader's own; none unless given."""

    spec: ContextSpec
    reader: BundleReader
    empty: Mapping[str, bytes]
    topics: Mapping[str, str] | None = None
    """Topic → source of every table it reads; None: named as our own connectors name them."""
    rungs: Rungs = field(default_factory=Rungs)
    ladder: Ladder = field(init=False)
    queries: int = 0
    spaces: SpaceStore | None = None
    states: VectorStateStore | None = None
    space: str | None = None
    space_at_s: float | None = None
    plain_keys: dict[str, str] = field(default_factory=dict, init=False)
    """Keys as callers write them → as bundles are named, of those that were right; empty unless `is_plain`."""
    _told: tuple[Seen, dict[str, int | None], dict[str, int | None]] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        rungs = self.rungs
        reader = self.reader if rungs.near_reader is None else rungs.near_reader
        store = StoreRung("store", reader, self.new_watch(self.reader), rungs, lambda: rungs.connections())
        replica_watch = None if rungs.replica_applied is None else self.new_watch(rungs.replica_applied)
        self.ladder = Ladder(self.spec.context, store, rungs, replica_watch)

    def new_watch(self, reader: BundleReader) -> AppliedWatch:
        """Up to where changes are in the bundles of this reader."""
        return new_watch(self.spec, reader, self.topics)

    @property
    def watch(self) -> AppliedWatch:
        """Of the store."""
        return self.ladder.store.watch

    @cached_property
    def sources(self) -> list[str]:
        return sorted({entity.source for entity in self.spec.entities.values()})

    @cached_property
    def section_sources(self) -> dict[str, tuple[str, ...]]:
        """Of every section, by its path: the sources that it and the sections in it are made from."""
        found: dict[str, tuple[str, ...]] = {}

        def walk(sections: Mapping[str, Section], before: str) -> set[str]:
            together: set[str] = set()
            for name, section in sections.items():
                path = f"{before}{name}"
                found[path] = ()  # an outer section stands before those in it
                sources = {self.spec.entities[section.entity].source, *walk(section.sections, f"{path}.")}
                found[path] = tuple(sorted(sources))
                together |= sources
            return together

        walk(self.spec.sections, "")
        return found

    @property
    def embeds(self) -> bool:
        return self.spec.embedding is not None and self.states is not None

    @property
    def is_plain(self) -> bool:
        """Answers say nothing more than what a rung of the ladder knows: nothing of vectors or of history."""
        return self.spec.history is None and not self.embeds

    @cached_property
    def _respells(self) -> bool:
        return any(decimal_columns(self.spec))

    def names_of(self, keys: Sequence[str]) -> Sequence[str]:
        """Keys as callers write them → as bundles are named."""
        return root_key_texts(self.spec, keys) if self._respells else keys

    def remember_key(self, key: str, wanted: str) -> None:
        if self.is_plain:
            if len(self.plain_keys) >= KEYS_REMEMBERED:
                self.plain_keys.clear()
            self.plain_keys[key] = wanted

    def times(self, seen: Seen) -> tuple[dict[str, int | None], dict[str, int | None]]:
        """(per source, per section): up to when all that was committed is in bundles that were read after this reading;
        None: not known. A section is as old as the source that it knows least of. The dicts are shared: no writing."""
        told = self._told
        if told is None or told[0] is not seen:
            by_source = {source: seen.as_of_us.get(source) for source in self.sources}
            by_section = {path: _least(by_source, sources) for path, sources in self.section_sources.items()}
            told = self._told = (seen, by_source, by_section)
        return told[1], told[2]


def _least(times_us: Mapping[str, int | None], sources: Sequence[str]) -> int | None:
    times = [times_us.get(source) for source in sources]
    return None if None in times else min(time for time in times if time is not None)


def new_watch(spec: ContextSpec, reader: BundleReader, topics: Mapping[str, str] | None = None) -> AppliedWatch:
    """`topics` as of a ServedContext."""
    if topics is None:
        topics = topics_of([(entity.source, entity.table) for entity in spec.entities.values()])
    return AppliedWatch(reader, topics, dirty_topic(spec.context, spec.version))
