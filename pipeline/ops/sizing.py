"""How many of everything a load needs, and what breaks first: a small model over measured figures. Pure.

Every part is a straight line: what the load asks of it, divided by what one process was measured to carry. Parts are
planned to use `utilisation` of that; the other half is for the hour after an outage, and for figures that come from
another machine. What more processes can't mend is a ceiling: it has the multiple of the load at which it is reached.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from pipeline.ops.measured import Measured
from pipeline.ops.sizing_search import SearchCost, search_cost

GIB = 1024**3
PARTITIONS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1000)
"""Numbers with many divisors; 1000 is the most that `kafka: partitions` takes."""
GROWTH = 4
"""Partitions for so many times the workers: a topic's number can't be raised without building everything anew."""
REPLICAS_MIN, WORKERS_MIN, BROKERS_MIN = 2, 2, 3
FRAGMENTATION = 1.2
VERSIONS = 2
"""While a changed context is built beside the serving one, Redis holds both."""
NODE_FILL = 0.8
COMPACTION = 2
"""Kafka compacts when half of a log is outdated."""
SEGMENT_BYTES, SEGMENT_S = 1 << 30, 7 * 86_400
"""The newest segment of a partition is never compacted; Kafka's defaults."""
VECTOR_RECORD_BYTES = 200
BROKER_BYTES_PER_S = 50e6
"""Taken in by one broker; assumed, nothing was measured on more than one."""
SERVE_BASE_BYTES, EMBEDDER_BYTES = 256 << 20, 768 << 20
"""Python, its libraries and connections (89 MiB after the imports); a model of 64 MB and its runtime. The rest of both
is assumed."""
KNOWN_BUNDLES, NEAR_BYTES = 20_000, 64 << 20
"""Defaults of `serve.last_known` and `serve.near_cache`."""
OUTAGE_S = 600.0


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of ctxpipe at its busiest. Shares are 0 to 1, sizes bytes, rates per second."""

    events_per_s: float
    bundles: int
    bundle_bytes: int = 2_000
    rows: int
    row_bytes: int
    event_bytes: int
    tables: int = 5
    fan_out: float
    contexts: int = 1
    sources: int = 1
    source: str = "postgres"
    lookups_per_s: float = 0.0
    near_share: float
    searches_per_s: float = 0.0
    embedded_share: float = 0.0
    changed_texts_share: float
    dimension: int = 384
    engine: str = "onnx-int8"
    hot_key_share: float = 0.01
    utilisation: float = 0.5
    replication: int = 3
    partitions: int | None = None
    redis_node_bytes: int = 16 * GIB
    replica_bytes: int = 16 * GIB
    search_budget_ms: float = 20.0


class Part(msgspec.Struct, frozen=True):
    """`count` processes (or nodes), each with `each_bytes` of memory and a core. `share` of what they were measured to
    carry is used; `full_at`, in multiples of the load, is where all of it is. Infinity: the load asks nothing of it."""

    name: str
    count: int
    each_bytes: int
    share: float

    @property
    def full_at(self) -> float:
        return 1 / self.share if self.share else math.inf


class Ceiling(msgspec.Struct, frozen=True):
    """What no further process helps against; `at` in multiples of the load, below 1: the load is over it already."""

    name: str
    at: float
    then: str


class Times(msgspec.Struct, frozen=True):
    """Seconds; infinity where the load leaves nothing over to catch up with."""

    catch_up_s: float
    fill_s: float
    embedding_s: float


class Plan(msgspec.Struct, frozen=True):
    """`redis_bytes` with the version that is built beside; `kafka_bytes` with replicas, over all brokers."""

    load: Load
    partitions: int
    parts: list[Part]
    ceilings: list[Ceiling]
    times: Times
    redis_bytes: int
    redis_shards: int
    vector_bytes: int
    kafka_bytes: int
    kafka_bytes_per_s: float
    notes: list[str]

    def part(self, name: str) -> Part:
        return next(part for part in self.parts if part.name == name)

    @property
    def fits(self) -> bool:
        """Whether the load is under every ceiling."""
        return all(ceiling.at >= 1 for ceiling in self.ceilings)

    @property
    def first_full(self) -> Part:
        return min(self.parts, key=lambda part: part.full_at)

    @property
    def first_ceiling(self) -> Ceiling:
        return min(self.ceilings, key=lambda ceiling: ceiling.at)


def plan(load: Load, measured: Measured) -> Plan:
    """What `load` needs where a process carries what was `measured`."""
    needs = _Needs(load, measured)
    workers = _count(needs.apply, load.utilisation, WORKERS_MIN)
    embedders = _count(needs.embed, load.utilisation, REPLICAS_MIN) if needs.texts_per_s else 0
    partitions = load.partitions or _partitions(GROWTH * max(workers, embedders))
    shards = max(_count(needs.redis, load.utilisation, 1), math.ceil(needs.redis_bytes / needs.node_bytes))
    replicas = _count(needs.serve, load.utilisation, REPLICAS_MIN)
    brokers = max(BROKERS_MIN, load.replication, math.ceil(needs.kafka_bytes_per_s * load.replication / _broker(load)))
    parts = [
        Part("connectors", load.sources, measured.apply_memory_bytes, needs.capture / load.sources),
        Part("brokers", brokers, 2 * GIB, needs.kafka_bytes_per_s * load.replication / brokers / BROKER_BYTES_PER_S),
        Part("workers", workers, 2 * measured.apply_memory_bytes, needs.apply / workers),
        Part("embedders", embedders, EMBEDDER_BYTES, needs.embed / embedders if embedders else 0.0),
        Part("redis", shards, math.ceil(needs.redis_bytes / shards / NODE_FILL), needs.redis_share(shards)),
        Part("replicas", replicas, needs.replica_bytes, needs.serve / replicas),
    ]
    return Plan(
        load=load,
        partitions=partitions,
        parts=parts,
        ceilings=sorted(_ceilings(needs, partitions, shards), key=lambda ceiling: ceiling.at),
        times=_times(needs, workers, embedders),
        redis_bytes=needs.redis_bytes,
        redis_shards=shards,
        vector_bytes=needs.vector_bytes,
        kafka_bytes=needs.kafka_bytes(partitions),
        kafka_bytes_per_s=needs.kafka_bytes_per_s,
        notes=list(_notes(needs)),
    )


class _Needs:
    """What the load asks, in processes that would be fully used (1.5: one and a half), and in bytes."""

    def __init__(self, load: Load, measured: Measured) -> None:
        self.load, self.measured = load, measured
        # A row's own write and a bundle's cost about the same: both are one script call and its part of a round trip.
        self.cost = (1 + load.fan_out) / (1 + measured.apply_writes_per_event)
        self.applied_per_s = load.events_per_s * load.contexts
        self.apply_per_s = measured.apply_events_per_s / self.cost
        self.capture = load.events_per_s / measured.capture_rows_per_s[load.source]
        self.apply = self.applied_per_s / self.apply_per_s
        self.texts_per_s = self.applied_per_s * load.fan_out * load.embedded_share * load.changed_texts_share
        self.embed_per_s = measured.embed_texts_per_s[load.engine] * measured.search_dimension / load.dimension
        self.embed = self.texts_per_s / self.embed_per_s
        self.vectors = round(load.bundles * load.embedded_share)
        self.search: SearchCost | None = search_cost(measured, self.vectors, load.dimension) if self.vectors else None
        self.serve = self._serve()

    @property
    def redis(self) -> float:
        """Cores: every Redis uses one."""
        read_per_s = self.load.lookups_per_s * (1 - self.load.near_share) + self.load.searches_per_s + self.texts_per_s
        writing = self.applied_per_s * self.cost * self.measured.redis_event_s
        return writing + read_per_s * self.measured.redis_lookup_s

    @property
    def redis_bytes(self) -> int:
        load, measured = self.load, self.measured
        bundles = load.bundles * (load.bundle_bytes + measured.redis_overhead_bytes_per_bundle)
        state = measured.redis_state_bytes_per_row / measured.row_bytes * load.row_bytes
        return math.ceil((bundles + load.rows * load.contexts * state) * VERSIONS * FRAGMENTATION)

    @property
    def node_bytes(self) -> float:
        return self.load.redis_node_bytes * NODE_FILL

    def redis_share(self, shards: int) -> float:
        """Of its core or of its memory, whichever is fuller."""
        return max(self.redis / shards, self.redis_bytes / shards / self.load.redis_node_bytes)

    @property
    def vector_bytes(self) -> int:
        return 0 if self.search is None else math.ceil(self.vectors * self.search.bytes_per_vector)

    @property
    def replica_base_bytes(self) -> int:
        return SERVE_BASE_BYTES + NEAR_BYTES + min(KNOWN_BUNDLES, self.load.bundles) * self.load.bundle_bytes

    @property
    def replica_bytes(self) -> int:
        return self.replica_base_bytes + self.vector_bytes

    @property
    def kafka_bytes_per_s(self) -> float:
        """Into Kafka, once; replicas come on top."""
        text = self.load.bundle_bytes / 2 + self.load.dimension * 4 + VECTOR_RECORD_BYTES
        return self.load.events_per_s * self.load.event_bytes + self.texts_per_s * text

    def kafka_bytes(self, partitions: int) -> int:
        load = self.load
        newest = min(SEGMENT_BYTES * partitions * load.tables, load.events_per_s * load.event_bytes * SEGMENT_S)
        vectors = self.vectors * (load.dimension * 4 + VECTOR_RECORD_BYTES + load.bundle_bytes / 2)
        return math.ceil((COMPACTION * (load.rows * load.event_bytes + vectors) + newest) * load.replication)

    def _serve(self) -> float:
        measured, load = self.measured, self.load
        mixed, store, share = 1 / measured.lookups_per_s, 1 / measured.lookups_without_near_per_s, measured.near_share
        # What a near hit costs, from the measured mixture of hits and reads.
        hit = max(0.0, (mixed - (1 - share) * store) / share) if share else mixed
        lookups = load.lookups_per_s * (load.near_share * hit + (1 - load.near_share) * store)
        return lookups + (load.searches_per_s / self.search.searches_per_s if self.search is not None else 0.0)


def _ceilings(needs: _Needs, partitions: int, shards: int) -> Iterator[Ceiling]:
    load = needs.load
    yield Ceiling("log of a source", _over(load.sources, needs.capture), "split its tables over more sources")
    yield Ceiling("partitions", _over(partitions, needs.apply), "more partitions: new topics, everything built anew")
    hottest = needs.apply * load.hot_key_share
    yield Ceiling("hottest row", _over(1, hottest), "its changes are one partition's: write it less often, or link it")
    if needs.embed:
        yield Ceiling("partitions, embedding", _over(partitions, needs.embed), "more partitions, or a faster engine")
    if shards == 1:
        yield Ceiling("a single Redis", _over(1, needs.redis_share(1)), "redis: {cluster: true}, with more shards")
    if needs.vector_bytes:
        room = load.replica_bytes - needs.replica_base_bytes
        yield Ceiling(
            "index of a replica", max(0.0, room / needs.vector_bytes), "more memory, fewer dimensions, or embed fewer"
        )
    if needs.search is not None and load.searches_per_s:
        most = needs.search.vectors_within(load.search_budget_ms / 2)
        yield Ceiling("time of a search", most / needs.vectors, "embed fewer bundles, or a context for each tenant")


def _times(needs: _Needs, workers: int, embedders: int) -> Times:
    share = needs.apply / workers
    filling_per_s = min(
        workers * needs.apply_per_s / needs.load.contexts,
        needs.load.sources * needs.measured.capture_rows_per_s[needs.load.source],
    )
    return Times(
        catch_up_s=OUTAGE_S * share / (1 - share) if share < 1 else math.inf,
        fill_s=needs.load.rows / filling_per_s,
        embedding_s=needs.vectors / (embedders * needs.embed_per_s) if embedders else 0.0,
    )


def _notes(needs: _Needs) -> Iterator[str]:
    measured = needs.measured
    most = max(point.vectors for point in measured.search_curve)
    if needs.vectors > most:
        yield f"searches over {needs.vectors:,} vectors: measured up to {most:,}, from there by the square root"
    if needs.load.dimension != measured.search_dimension:
        yield f"{needs.load.dimension} dimensions: measured with {measured.search_dimension}, taken in proportion"
    if needs.load.source != "postgres":
        yield f"a {needs.load.source} source has a process for each node: sources means nodes"


def _count(need: float, utilisation: float, least: int) -> int:
    return max(least, math.ceil(round(need / utilisation, 9)))


def _partitions(wanted: int) -> int:
    return next((number for number in PARTITIONS if number >= wanted), PARTITIONS[-1])


def _broker(load: Load) -> float:
    return BROKER_BYTES_PER_S * load.utilisation


def _over(capacity: float, need: float) -> float:
    return capacity / need if need else math.inf
