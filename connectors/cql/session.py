"""The driver's bridge to asyncio: a session whose requests are awaited, bounded, paged, and answered with raw bytes.

cassandra-driver works with threads of its own; scylla-driver, where it is installed, takes its place under the same
name and knows which shard of a node holds what. Nothing here blocks the event loop: what blocks runs in a thread, what
does not is called back through the loop.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Literal

import msgspec
from cassandra import ConsistencyLevel
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.metadata import Murmur3Token
from cassandra.policies import DCAwareRoundRobinPolicy, TokenAwarePolicy
from cassandra.protocol import ProtocolHandler, ResultMessage, read_int
from cassandra.query import BatchStatement, BatchType, SimpleStatement
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from connectors.cql.errors import mapped, mapped_errors
from connectors.cql.values import CqlType, canonical
from pipeline.core.errors import EnvironmentProblem


class _Calm(logging.Filter):
    """The driver begins with a protocol that hardly any server speaks and warns of each step down, and shows the stack
    of failures that are raised as well, with words for a person."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.exc_info = None
        return not record.getMessage().startswith(_TOLD_OTHERWISE)


_TOLD_OTHERWISE = (
    "Downgrading core protocol",
    "Control connection failed to connect",
    "[control connection] Error conn",
)
_PROTOCOL = 4
"""Values have had one form since then."""
logging.getLogger("cassandra.cluster").addFilter(_Calm())

Consistency = Literal["ONE", "LOCAL_ONE", "TWO", "QUORUM", "LOCAL_QUORUM", "EACH_QUORUM", "ALL"]


class CqlServer(BaseModel):
    """Where the servers are and how to log in: the part that the sections of CQL sources share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hosts: list[str] = Field(
        min_length=1, description="some of the cluster's nodes; the others are found by themselves"
    )
    port: int = Field(default=9042, ge=1, le=65535)
    user: str = ""
    password: SecretStr = SecretStr("")
    local_datacenter: str = Field(default="", description="requests stay there; default: where the first host is")
    consistency: Consistency = Field(default="LOCAL_QUORUM", description="of reads")
    tls_ca_file: str | None = Field(default=None, description="turns TLS on; the server's certificate is checked by it")
    tls_certificate_file: str | None = None
    tls_key_file: str | None = None
    connect_timeout_s: float = Field(default=10.0, gt=0)
    request_timeout_s: float = Field(default=10.0, gt=0)
    requests_in_flight_max: int = Field(default=32, ge=1, le=1024)
    page_rows: int = Field(default=1000, ge=1, le=100_000)

    def where(self) -> str:
        """For messages."""
        return f"{', '.join(self.hosts)} (port {self.port})"


class Rows(msgspec.Struct, frozen=True):
    """An answer: columns as (name, type), and rows of what the server sent, undecoded; None is null."""

    columns: Sequence[tuple[str, CqlType]]
    rows: list[tuple[bytes | None, ...]]
    driver_types: Sequence[Any] = ()

    def objects(self) -> list[dict[str, Any]]:
        """The rows as the driver's own values, which it also takes as parameters."""
        named = [(name, kind) for (name, _), kind in zip(self.columns, self.driver_types, strict=True)]
        return [
            {name: kind.from_binary(value, _PROTOCOL) for (name, kind), value in zip(named, row, strict=True)}
            for row in self.rows
        ]

    def dicts(self) -> list[dict[str, Any]]:
        """The rows as canonical values."""
        return [
            {name: canonical(value, kind) for (name, kind), value in zip(self.columns, row, strict=True)}
            for row in self.rows
        ]


class Prepared(msgspec.Struct, frozen=True):
    """A prepared statement and the columns that it answers with."""

    statement: Any
    columns: Sequence[tuple[str, CqlType]]


class CqlSession:
    """Made by `connect`. Any number of tasks of one event loop may use it at once; `requests_in_flight_max` of their
    requests are on their way, the others wait. Errors are mapped by errors.py.
    """

    def __init__(self, server: CqlServer, cluster: Any, session: Any) -> None:
        self.server = server
        self.where = server.where()
        self._cluster = cluster
        self._session = session
        self._slots = asyncio.Semaphore(server.requests_in_flight_max)
        self._prepared: dict[str, Prepared] = {}

    @property
    def datacenters(self) -> list[str]:
        return _datacenters(self._cluster)

    async def prepare(self, query: str) -> Prepared:
        """The same statement again for the same text, until `forget`."""
        known = self._prepared.get(query)
        if known is None:
            with mapped_errors(self.where):
                statement = await asyncio.to_thread(self._session.prepare, query)
            columns = tuple((entry[2], type_of(entry[3])) for entry in statement.result_metadata or ())
            known = self._prepared[query] = Prepared(statement, columns)
        return known

    async def other_nodes(self) -> int:
        """How many nodes the cluster has beside the one that answers, those that are just joining with them."""
        return len((await self.rows("SELECT peer FROM system.peers", consistency="LOCAL_ONE")).rows)

    def forget(self) -> None:
        """The schema changed: statements are prepared anew."""
        self._prepared.clear()

    async def execute(
        self, query: str | Prepared, parameters: Sequence[Any] = (), *, consistency: Consistency | None = None
    ) -> Rows:
        """The first page of the answer. `parameters` are Python values for `?` of a prepared statement."""
        rows, _ = await self._request(query, parameters, None, consistency)
        return rows

    async def rows(
        self, query: str | Prepared, parameters: Sequence[Any] = (), *, consistency: Consistency | None = None
    ) -> Rows:
        """The whole answer."""
        pages = [page async for page in self.pages(query, parameters, consistency=consistency)]
        return msgspec.structs.replace(pages[0], rows=[row for page in pages for row in page.rows])

    async def pages(
        self, query: str | Prepared, parameters: Sequence[Any] = (), *, consistency: Consistency | None = None
    ) -> AsyncIterator[Rows]:
        """Page by page of `page_rows`; the next one is asked for when it is wanted. At least one, also when empty."""
        state = None
        while True:
            page, state = await self._request(query, parameters, state, consistency)
            yield page
            if state is None:
                return

    async def batch(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> None:
        """Several writes of one partition as one, which is there as a whole or not at all."""
        together = BatchStatement(BatchType.UNLOGGED)
        for query, parameters in statements:
            prepared = await self.prepare(query)
            with mapped_errors(self.where):
                together.add(prepared.statement, tuple(parameters))
        await self._send(together, None)

    async def token(self, query: str, parameters: Sequence[Any]) -> int:
        """The token of the partition that a statement's parameters name."""
        prepared = await self.prepare(query)
        return int(Murmur3Token.hash_fn(prepared.statement.bind(tuple(parameters)).routing_key))

    async def close(self) -> None:
        await asyncio.to_thread(self._cluster.shutdown)

    async def _request(
        self, query: str | Prepared, parameters: Sequence[Any], state: Any, consistency: Consistency | None
    ) -> tuple[Rows, Any]:
        if isinstance(query, str) and parameters:
            query = await self.prepare(query)
        columns: Sequence[tuple[str, CqlType]] = ()
        if isinstance(query, Prepared):
            columns = query.columns
            with mapped_errors(self.where):
                statement = query.statement.bind(tuple(parameters))
        else:
            statement = SimpleStatement(query)
        statement.fetch_size = self.server.page_rows
        if consistency is not None:
            statement.consistency_level = ConsistencyLevel.name_to_value[consistency]
        rows, sent = await self._send(statement, state)
        if sent._col_names and [name for name, _ in columns] != list(sent._col_names):
            columns = tuple(zip(sent._col_names, map(type_of, sent._col_types), strict=True))
        return Rows(columns, rows or [], sent._col_types or ()), sent._paging_state

    async def _send(self, statement: Any, state: Any) -> tuple[Any, Any]:
        loop = asyncio.get_running_loop()
        async with self._slots:
            answered: asyncio.Future[Any] = loop.create_future()
            with mapped_errors(self.where):
                sent = self._session.execute_async(statement, paging_state=state)
            sent.add_callbacks(
                lambda rows: _tell(loop, answered, rows, None), lambda error: _tell(loop, answered, None, error)
            )
            rows = await answered
        if isinstance(rows, Exception):
            raise mapped(rows, self.where) from rows
        return rows, sent


async def connect(server: CqlServer) -> CqlSession:
    """Raises Retryable when no host answers, EnvironmentProblem for a refused login or an unknown datacenter."""
    with mapped_errors(server.where()):
        cluster = await asyncio.to_thread(_cluster, server)  # it resolves names
    try:
        session = await asyncio.to_thread(cluster.connect)
    except NoHostAvailable as error:
        known = _datacenters(cluster)
        await asyncio.to_thread(cluster.shutdown)
        _require_datacenter(server, known)
        raise mapped(error, server.where()) from error
    except BaseException as error:
        await asyncio.to_thread(cluster.shutdown)
        if isinstance(error, Exception):
            with mapped_errors(server.where()):
                raise
        raise
    session.client_protocol_handler = _RawProtocol
    connected = CqlSession(server, cluster, session)
    try:
        _require_datacenter(server, connected.datacenters)
    except EnvironmentProblem:
        await connected.close()
        raise
    return connected


def type_of(driver_type: Any) -> CqlType:
    """The driver's class of a type → ours. One that the driver does not know keeps its Java name, and no decoder."""
    name, inner = str(driver_type.typename), tuple(driver_type.subtypes or ())
    if name in ("frozen", "reversed") or driver_type.__name__.startswith(("FrozenType", "ReversedType")):
        return type_of(inner[0])
    if getattr(driver_type, "fieldnames", None) and hasattr(driver_type, "keyspace"):
        return CqlType("udt", tuple(map(type_of, inner)), tuple(driver_type.fieldnames))
    if getattr(driver_type, "vector_size", 0):
        return CqlType("vector", (type_of(driver_type.subtype),), size=int(driver_type.vector_size))
    return CqlType("text" if name == "varchar" else name.strip("'"), tuple(map(type_of, inner)))


class _RawResult(ResultMessage):  # type: ignore[misc]
    """Leaves the values of rows as they are; its name's underscore keeps it out of the driver's own registry."""

    def recv_results_rows(self, stream: Any, _version: int, types: Any, metadata: Any, _policy: Any) -> None:
        self.recv_results_metadata(stream, types)
        columns = self.column_metadata or metadata
        self.column_names = [column[2] for column in columns]
        self.column_types = [column[3] for column in columns]
        width = len(columns)
        self.parsed_rows = [tuple(self.recv_row(stream, width)) for _ in range(read_int(stream))]


class _RawProtocol(ProtocolHandler):  # type: ignore[misc]
    message_types_by_opcode = {**ProtocolHandler.message_types_by_opcode, ResultMessage.opcode: _RawResult}  # noqa: RUF012


def _cluster(server: CqlServer) -> Any:
    policy = TokenAwarePolicy(DCAwareRoundRobinPolicy(local_dc=server.local_datacenter))
    profile = ExecutionProfile(
        load_balancing_policy=policy,
        consistency_level=ConsistencyLevel.name_to_value[server.consistency],
        request_timeout=server.request_timeout_s,
        row_factory=lambda _names, rows: rows,
    )
    login = PlainTextAuthProvider(server.user, server.password.get_secret_value()) if server.user else None
    return Cluster(
        server.hosts,
        port=server.port,
        auth_provider=login,
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        connect_timeout=server.connect_timeout_s,
        control_connection_timeout=server.request_timeout_s,
        ssl_context=_tls(server),
        schema_metadata_enabled=False,
        schema_event_refresh_window=-1,
    )


def _tls(server: CqlServer) -> ssl.SSLContext | None:
    if server.tls_ca_file is None:
        return None
    try:
        context = ssl.create_default_context(cafile=server.tls_ca_file)
        if server.tls_certificate_file is not None:
            context.load_cert_chain(server.tls_certificate_file, server.tls_key_file)
    except OSError as error:
        raise EnvironmentProblem(f"{server.where()}: a TLS file can't be read: {error}") from error
    return context


def _datacenters(cluster: Any) -> list[str]:
    return sorted({str(host.datacenter) for host in cluster.metadata.all_hosts() if host.datacenter})


def _require_datacenter(server: CqlServer, known: list[str]) -> None:
    wanted = server.local_datacenter
    if wanted and known and wanted not in known:
        raise EnvironmentProblem(
            f"{server.where()} has no datacenter {wanted!r}; it has: {', '.join(known)}. Mend the source's "
            "local_datacenter."
        )


def _tell(loop: asyncio.AbstractEventLoop, answered: asyncio.Future[Any], rows: Any, error: Any) -> None:
    """From a thread of the driver. The loop may have been closed meanwhile; then nobody waits any more."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(_set, answered, rows if error is None else error)


def _set(answered: asyncio.Future[Any], result: Any) -> None:
    if not answered.done():
        answered.set_result(result)
