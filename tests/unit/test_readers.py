"""Which reader a source is verified with, by its connector or by what its section says is behind it."""

from __future__ import annotations

from typing import Any

import pytest

from connectors.cql.reader import CqlReader
from connectors.postgres.reader import PostgresReader
from connectors.readers import EXPIRY_S, Reading, reading_of
from connectors.registry import Configured, Plugin, configure
from pipeline.core.debezium import DebeziumConfig
from pipeline.core.errors import ConfigError

DEBEZIUM = Plugin("debezium", "", DebeziumConfig, None)
BEATING = {"heartbeat_table": "beat", "sidecar": {"cassandra_yaml": "c.yaml"}}
CQL = {"hosts": ["127.0.0.1"], "keyspace": "ks", "tables": ["t"]}


def foreign(**section: Any) -> Configured:
    return Configured(DEBEZIUM, DebeziumConfig.model_validate({"name": "shop", **section}))


@pytest.mark.parametrize(
    ("section", "reader", "heartbeats", "settle_s"),
    [
        ({"connector": "postgres", "dsn": "postgresql://h/d", "tables": ["public.t"]}, PostgresReader, True, 0.0),
        ({"connector": "cassandra", "data_directory": "d", **CQL}, CqlReader, False, EXPIRY_S),
        ({"connector": "cassandra", "data_directory": "d", **BEATING, **CQL}, CqlReader, True, EXPIRY_S),
        ({"connector": "scylla", **CQL}, CqlReader, True, EXPIRY_S),
    ],
)
async def test_a_database_is_read_by_its_own_reader(
    section: dict[str, Any], reader: type, heartbeats: bool, settle_s: float
) -> None:
    (source,) = configure({"shop": section})
    found = reading_of(source)
    assert (type(found.reader), found.heartbeats, found.settle_s) == (reader, heartbeats, settle_s)


class Peers:
    def __init__(self, count: int) -> None:
        self._count = count

    async def other_nodes(self) -> int:
        return self._count


@pytest.mark.parametrize(
    ("heartbeats", "lone_only", "others", "expected"),
    [(True, True, 0, True), (True, True, 2, False), (True, False, 2, True), (False, True, 0, False)],
)
async def test_heartbeats_of_a_node_speak_for_no_other(
    heartbeats: bool, lone_only: bool, others: int, expected: bool
) -> None:
    assert await Reading(Peers(others), heartbeats, 0.0, lone_only).has_heartbeats() is expected


@pytest.mark.parametrize(
    ("section", "reader"),
    [
        ({"verify": {"connector": "postgres", "dsn": "postgresql://h/d"}}, PostgresReader),
        ({"verify": {"connector": "scylla", "hosts": ["h"], "port": 9043}}, CqlReader),
        ({"dsn": "postgresql://h/d"}, PostgresReader),
    ],
)
async def test_topics_that_others_fill_are_verified_by_the_database_behind_them(
    section: dict[str, Any], reader: type
) -> None:
    found = reading_of(foreign(**section))
    assert type(found.reader) is reader and not found.heartbeats


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, r"^source shop can't be verified: .*verify: \{connector: postgres, dsn: …\}"),
        ({"verify": {"connector": "oracle"}}, r"^sources\.shop\.verify\.connector: 'oracle' is none of postgres, "),
        ({"verify": {"connector": "postgres"}}, r"^sources\.shop\.verify\.dsn: is missing$"),
        ({"verify": {"connector": "cassandra"}}, r"^sources\.shop\.verify\.hosts: is missing: some of the cluster's"),
        (
            {"verify": {"connector": "cassandra", "host": "h"}},
            r"sources\.shop\.verify\.host: unknown key; did you mean",
        ),
    ],
)
def test_what_can_not_be_verified_is_said_in_one_message(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reading_of(foreign(**section))
