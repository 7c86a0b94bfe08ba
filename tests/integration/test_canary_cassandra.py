"""The canary's rows in a real Cassandra, through the real sidecar: each in the partition that its key was made for."""

from __future__ import annotations

from pathlib import Path

import pytest

from connectors.canary import CanaryRow, record_key, rows_of, writer_of
from deploy.local.cassandra import CassandraServer
from pipeline.core.errors import EnvironmentProblem
from tests.support.cassandra import cql_session, fresh_keyspace
from tests.support.cassandra_source import configured, running
from tests.support.eventually import eventually
from tests.support.kafka_records import read_all

pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]

TABLE = "ctxpipe_canary"


async def test_rows_fall_to_the_partitions_that_they_are_meant_for(
    cassandra_server: CassandraServer, kafka_bootstrap: str, tmp_path: Path
) -> None:
    async with cql_session(cassandra_server) as session, fresh_keyspace(session) as keyspace:
        source = configured(cassandra_server, keyspace, keyspace, [TABLE], tmp_path)
        writer = writer_of(source, f"{keyspace}.{TABLE}", {})
        slots = rows_of(3, ours=True)
        listed = ",".join(map(str, slots))

        def rows(number: int) -> list[CanaryRow]:
            return [CanaryRow(slot, listed, partition, number, 1_000 + number) for slot, partition in slots.items()]

        async def seen() -> dict[int, set[int]]:
            """Partition → numbers that were written into its row."""
            found: dict[int, set[int]] = {}
            for record in await read_all(kafka_bootstrap, source.topics()):
                for slot, partition in slots.items():
                    if record.key == record_key(slot):
                        assert record.partition == partition
                        found.setdefault(record.partition, set()).update(
                            number for number in (1, 2) if b"%d" % (1_000 + number) in (record.value or b"")
                        )
            return found

        try:
            with pytest.raises(EnvironmentProblem, match="`ctxpipe canary --prepare` makes the table"):
                await writer.write(rows(0))
            made = await writer.prepare()
            assert [one.severity for one in made] == ["ok", "note"] and "was made" in made[0].message
            assert "is there" in (await writer.prepare())[0].message
            await writer.write(rows(1))
            async with running(source, kafka_bootstrap):
                await eventually(seen, lambda found: all(1 in found.get(n, ()) for n in range(3)), timeout_s=120)
                await writer.write(rows(2))
                await eventually(seen, lambda found: all(2 in found[n] for n in range(3)), timeout_s=120)
            await session.execute(f"DROP TABLE {keyspace}.{TABLE}")
            await session.execute(f"CREATE TABLE {keyspace}.{TABLE} (slot text PRIMARY KEY) WITH cdc = true")
            wrong = (await writer.prepare())[0]
            assert wrong.severity == "unfit" and "(slot text)" in wrong.message and "CREATE TABLE" in wrong.mend
        finally:
            await writer.close()
