"""A login that may do too little, on a server that asks for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from connectors.cql.session import CqlServer, connect
from connectors.scylla.checks import check_scylla
from connectors.scylla.log_watch import LogWatch
from connectors.scylla.source import ScyllaSource
from deploy.local.cassandra import CassandraServer
from pipeline.core.clock import SystemClock
from pipeline.core.errors import EnvironmentProblem, Retryable
from tests.support.cassandra import cql_server, start_cassandra
from tests.support.eventually import eventually
from tests.support.scylla import scylla_table
from tests.support.servers import LocalRoot

pytestmark = pytest.mark.servers
LOGIN = {
    "authenticator": "PasswordAuthenticator",
    "authorizer": "CassandraAuthorizer",
    "permissions_validity": "0ms",  # a grant counts at once
}
ADMIN = {"user": "cassandra", "password": "cassandra"}
READER = {"user": "reader", "password": "secret-of-reader"}


@pytest.fixture
def guarded(local_root: LocalRoot) -> Iterator[CassandraServer]:
    server = start_cassandra(local_root, settings=LOGIN)
    yield server
    server.kill()
    server.remove_data()


async def answers(server: CqlServer) -> bool:
    """The first role is made a while after the server answers."""
    await (await connect(server)).close()
    return True


async def test_a_login_without_rights_is_told_what_it_lacks(guarded: CassandraServer) -> None:
    admin = cql_server(guarded, **ADMIN)
    await eventually(
        lambda: answers(admin), what="the superuser can log in", ignore=(EnvironmentProblem, Retryable), timeout_s=90
    )
    async with scylla_table(guarded, "k int PRIMARY KEY, v text", login=ADMIN) as made:
        await made.session.execute("CREATE ROLE reader WITH PASSWORD = 'secret-of-reader' AND LOGIN = true")
        keyspace = made.table.keyspace
        wrong = made.configured(user="reader", password="wrong")
        with pytest.raises(EnvironmentProblem, match="refuses the login") as refused:
            await ScyllaSource(wrong).open(None)
        assert "wrong" not in str(refused.value)

        config = made.configured(**READER)
        with pytest.raises(EnvironmentProblem, match=r"no permission.*grants that are missing"):
            await opened_and_closed(ScyllaSource(config))
        watch = LogWatch(config, None, SystemClock())
        assert (await watch.look()).severity == "unfit"
        lacking = [one for one in await check_scylla(config) if one.severity == "unfit"]
        assert lacking and lacking[0].mend == f"GRANT SELECT ON TABLE {keyspace}.t_scylla_cdc_log TO reader;"

        await made.session.execute(f"GRANT SELECT ON KEYSPACE {keyspace} TO reader")
        assert not [one for one in await check_scylla(config) if one.severity == "unfit"]
        await opened_and_closed(ScyllaSource(config))
        health = await watch.look()
        await watch.close()
        assert health.severity == "note" and health.generation_s is not None, health.findings


async def opened_and_closed(source: ScyllaSource) -> None:
    try:
        await source.open(None)
    finally:
        await source.close()
