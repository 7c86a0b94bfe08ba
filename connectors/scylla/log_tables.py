"""Makes log tables and generations on a server that is no Scylla, as Scylla makes them: for tests, samples, benchmarks.

DDL as in Scylla's cdc/log.cc; the keyspace with the generations is one of our own, because no client may write into
the system's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from connectors.cql.schema import Column, TableSchema, full_name, quoted
from connectors.cql.session import CqlSession
from connectors.scylla.config import LOG_SUFFIX, Metadata

_TOKENS = 1 << 64
_FIRST_TOKEN = -(1 << 63)
_RANDOM_BITS = 38
_RANDOM_SHIFT = 26


class Generation(msgspec.Struct, frozen=True):
    """`vnodes` are (end of a token range, its streams), by end. Writes from `time_ms` on go to them."""

    time_ms: int
    vnodes: tuple[tuple[int, tuple[bytes, ...]], ...]

    def stream_of(self, token: int) -> bytes:
        """As the server picks it: the range that holds the token, and within it one stream for each of its shards."""
        vnode = next((one for one in self.vnodes if token <= one[0]), self.vnodes[0])
        return vnode[1][token % len(vnode[1])]


def new_generation(time_ms: int, vnodes: int, shards: int, randomness: random.Random) -> Generation:
    """The ring in equal parts, `shards` streams in each."""
    step = _TOKENS // vnodes
    made = []
    for index in range(vnodes):
        end = _FIRST_TOKEN + (index + 1) * step - 1
        streams = [_stream_id(end - shard, index, randomness) for shard in range(shards)]
        made.append((end, tuple(sorted(streams))))
    return Generation(time_ms, tuple(made))


def log_ddl(table: TableSchema) -> str:
    """CREATE TABLE of a table's log."""
    columns = [
        '"cdc$stream_id" blob',
        '"cdc$time" timeuuid',
        '"cdc$batch_seq_no" int',
        '"cdc$operation" tinyint',
        '"cdc$ttl" bigint',
        '"cdc$end_of_batch" boolean',
        *(f"{quoted(column.name)} {column.declared}" for column in table.key),
        *(part for column in table.columns if column not in table.key for part in value_columns(column)),
    ]
    return (
        f"CREATE TABLE {full_name(table.keyspace, table.table + LOG_SUFFIX)} ({', '.join(columns)}, "
        'PRIMARY KEY ("cdc$stream_id", "cdc$time", "cdc$batch_seq_no")) WITH gc_grace_seconds = 0 '
        f"AND comment = 'CDC log for {table.keyspace}.{table.table}' "
        "AND caching = {'keys': 'NONE', 'rows_per_partition': 'NONE'} AND compaction = "
        "{'class': 'TimeWindowCompactionStrategy', 'compaction_window_unit': 'MINUTES', "
        "'compaction_window_size': '60', 'expired_sstable_check_frequency_seconds': '1800'}"
    )


def value_columns(column: Column) -> list[str]:
    """What the log has of a column, as for CREATE TABLE and ALTER TABLE ADD."""
    name, declared = column.name, column.declared
    deleted = f"{quoted('cdc$deleted_' + name)} boolean"
    if not column.multi_cell:
        return [f"{quoted(name)} {declared}", deleted]
    shown, elements = f"frozen<{declared}>", "smallint"
    if declared.startswith("list<"):
        shown, elements = f"frozen<map<timeuuid, {declared[5:-1]}>>", "timeuuid"
    elif declared.startswith(("set<", "map<")):
        elements = _first_parameter(declared)
    gone = f"{quoted('cdc$deleted_elements_' + name)} frozen<set<{elements}>>"
    return [f"{quoted(name)} {shown}", deleted, gone]


async def create_log(session: CqlSession, table: TableSchema) -> None:
    await session.execute(log_ddl(table))


async def create_metadata(session: CqlSession, where: Metadata) -> None:
    """Both layouts of generations, in keyspaces that must exist."""
    for ddl in _metadata_ddl(where):
        await session.execute(ddl)


async def tell_vnodes(session: CqlSession, where: Metadata, generation: Generation) -> None:
    """The streams first: whoever sees the generation finds them."""
    insert = f"INSERT INTO {full_name(where.keyspace, where.streams)} (time, range_end, streams) VALUES (?, ?, ?)"
    for range_end, streams in generation.vnodes:
        await session.execute(insert, (generation.time_ms, range_end, set(streams)))
    tell = f"INSERT INTO {full_name(where.keyspace, where.timestamps)} (key, time) VALUES (?, ?)"
    await session.execute(tell, ("timestamps", generation.time_ms))


async def tell_tablets(
    session: CqlSession, where: Metadata, keyspace: str, table: str, generation: Generation, before: Sequence[bytes]
) -> None:
    """Of one table. `before` are the streams of the generation before: those that end, and new ones, are told, too."""
    streams = {stream for _, found in generation.vnodes for stream in found}
    states = [(0, stream) for stream in streams]
    states += [(1, stream) for stream in set(before) - streams] + [(2, stream) for stream in streams - set(before)]
    insert = (
        f"INSERT INTO {full_name(where.tablets_keyspace, where.tablets_streams)} "
        "(keyspace_name, table_name, timestamp, stream_state, stream_id) VALUES (?, ?, ?, ?, ?)"
    )
    for state, stream in states:
        await session.execute(insert, (keyspace, table, generation.time_ms, state, stream))
    tell = (
        f"INSERT INTO {full_name(where.tablets_keyspace, where.tablets_timestamps)} "
        "(keyspace_name, table_name, timestamp) VALUES (?, ?, ?)"
    )
    await session.execute(tell, (keyspace, table, generation.time_ms))


async def forget_generation(session: CqlSession, where: Metadata, time_ms: int) -> None:
    """As the server does once all changes of a generation have lived their time."""
    await session.execute(
        f"DELETE FROM {full_name(where.keyspace, where.timestamps)} WHERE key = ? AND time = ?", ("timestamps", time_ms)
    )
    await session.execute(f"DELETE FROM {full_name(where.keyspace, where.streams)} WHERE time = ?", (time_ms,))


def _stream_id(token: int, index: int, randomness: random.Random) -> bytes:
    low = randomness.getrandbits(_RANDOM_BITS) << _RANDOM_SHIFT | index << 4 | 1
    return token.to_bytes(8, "big", signed=True) + low.to_bytes(8, "big")


def _metadata_ddl(where: Metadata) -> list[str]:
    of_table = "keyspace_name text, table_name text, timestamp timestamp"
    return [
        f"CREATE TABLE {full_name(where.keyspace, where.timestamps)} (key text, time timestamp, expired timestamp, "
        "PRIMARY KEY (key, time)) WITH CLUSTERING ORDER BY (time DESC)",
        f"CREATE TABLE {full_name(where.keyspace, where.streams)} (time timestamp, range_end bigint, "
        "streams frozen<set<blob>>, PRIMARY KEY (time, range_end))",
        f"CREATE TABLE {full_name(where.tablets_keyspace, where.tablets_timestamps)} ({of_table}, "
        "PRIMARY KEY ((keyspace_name, table_name), timestamp)) WITH CLUSTERING ORDER BY (timestamp DESC)",
        f"CREATE TABLE {full_name(where.tablets_keyspace, where.tablets_streams)} ({of_table}, stream_state tinyint, "
        "stream_id blob, PRIMARY KEY ((keyspace_name, table_name), timestamp, stream_state, stream_id))",
    ]


def _first_parameter(declared: str) -> str:
    """K of set<K> and map<K, V>, which may be composed itself."""
    inner, depth = declared[4:-1], 0
    for place, character in enumerate(inner):
        depth += (character == "<") - (character == ">")
        if character == "," and depth == 0:
            return inner[:place]
    return inner
