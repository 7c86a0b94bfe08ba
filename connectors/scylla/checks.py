"""Tells beforehand whether a Scylla source is fit, each finding with what mends it; it changes nothing."""

from __future__ import annotations

from connectors.cql.schema import TableSchema, full_name, read_table
from connectors.cql.session import CqlSession, connect
from connectors.scylla.config import LOG_SUFFIX, US, ScyllaConfig
from connectors.scylla.generations import Dialect, Generations, Told, log_ttl_s, read_dialect, read_log_options
from connectors.scylla.layout import log_layout
from connectors.scylla.messages import no_log
from connectors.scylla.positions import require_ours, require_readable
from connectors.scylla.progress import restored
from connectors.scylla.windows import log_start
from connectors.source import Finding, Position
from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import CtxpipeError, EnvironmentProblem, Fatal

SKEW_TOLD_US = US


async def check_scylla(config: ScyllaConfig, clock: Clock | None = None) -> list[Finding]:
    """All findings. Raises Retryable or EnvironmentProblem when no host answers or the login is refused."""
    session = await connect(config)
    try:
        dialect = await read_dialect(session, config)
        generations = Generations(session, config, dialect, clock or SystemClock())
        findings = await _server(session, dialect)
        for number, table in enumerate(config.tables):
            found = await _table(session, config, dialect, table)
            findings += found
            if not any(one.severity == "unfit" for one in found):
                findings += await _generations(config, generations, table, first=number == 0)
        if config.shard.of > 1:
            findings.append(_sharing(config))
    finally:
        await session.close()
    return findings


async def check_position(config: ScyllaConfig, position: Position | None) -> list[Finding]:
    """Whether reading can go on at the stored position, judged as `ctxpipe connect` would."""
    if position is None or position.get("connector") != "scylla":
        return [Finding("ok", "position", "`ctxpipe connect` begins anew")]
    session = await connect(config)
    findings = []
    try:
        require_ours(config, position)
        dialect = await read_dialect(session, config)
        generations = Generations(session, config, dialect, SystemClock())
        for table in (one for one in config.tables if one in position["tables"]):
            progress = restored(position["tables"][table])
            told = await generations.told(table)
            ttl_s = log_ttl_s(config, await read_log_options(session, config, table, dialect))
            require_readable(config, table, progress, told, log_start(told.seen_us, ttl_s))
            behind_s = (told.seen_us - progress.until_us) // US
            findings.append(Finding("ok", f"position of {table}", f"goes on {behind_s} s ago"))
    except CtxpipeError as error:
        return [Finding("unfit", "position", str(error), f"ctxpipe connect {config.name} --reset")]
    finally:
        await session.close()
    return findings


async def _server(session: CqlSession, dialect: Dialect) -> list[Finding]:
    rows = (
        await session.rows("SELECT release_version, cluster_name FROM system.local", consistency="LOCAL_ONE")
    ).dicts()
    where = f"{session.where} answers: cluster {rows[0]['cluster_name']}, version {rows[0]['release_version']}"
    if not dialect.scylla:
        return [Finding("note", "server", f"{where}; it is no Scylla, so somebody else has to write the logs")]
    return [Finding("ok", "server", f"{where}, streams by {'tablets' if dialect.tablets else 'vnodes'}")]


async def _table(session: CqlSession, config: ScyllaConfig, dialect: Dialect, name: str) -> list[Finding]:
    subject = f"{config.keyspace}.{name}"
    table = await read_table(session, config.keyspace, name)
    if table is None:
        message = "does not exist, or is not to be seen by this login"
        return [Finding("unfit", subject, message, f"GRANT SELECT ON TABLE {subject} TO {config.user or 'USER'};")]
    log = await read_table(session, config.keyspace, name + LOG_SUFFIX)
    if log is None:
        message, _, mend = no_log(config, name).partition(". ")
        return [Finding("unfit", subject, message, mend)]
    findings = _options(subject, await read_log_options(session, config, name, dialect))
    try:
        await session.execute(f"SELECT * FROM {full_name(config.keyspace, log.table)} LIMIT 1")
        log_layout([(column.name, column.type) for column in log.columns], table)
    except EnvironmentProblem as error:
        mend = f"GRANT SELECT ON TABLE {config.keyspace}.{log.table} TO {config.user or 'USER'};"
        findings.append(Finding("unfit", subject, str(error), mend))
    except Fatal as error:
        findings.append(Finding("unfit", subject, str(error)))
    if not findings:
        findings.append(Finding("ok", subject, "CDC is enabled, its log can be read"))
    return findings + _columns(subject, table, config)


def _options(subject: str, options: dict[str, str]) -> list[Finding]:
    if options.get("enabled", "true") != "true":
        mend = f"ALTER TABLE {subject} WITH cdc = {{'enabled': true}};"
        return [Finding("unfit", subject, "CDC is switched off; the log that is there gets no changes", mend)]
    if options.get("delta", "full") != "full":
        mend = f"ALTER TABLE {subject} WITH cdc = {{'enabled': true, 'delta': 'full'}};"
        return [Finding("unfit", subject, "the log holds keys only (delta = keys): values can't be captured", mend)]
    return []


def _columns(subject: str, table: TableSchema, config: ScyllaConfig) -> list[Finding]:
    findings = []
    static = [column.name for column in table.columns if column.kind == "static"]
    if static:
        text = f"static columns are not captured: {', '.join(static)}; they belong to a partition, not to a row"
        findings.append(Finding("note", subject, text))
    lists = [column.name for column in table.columns if column.multi_cell and column.declared.startswith("list<")]
    if lists and config.snapshot == "initial":
        text = (
            f"of lists that are not frozen ({', '.join(lists)}) CQL does not tell the places: elements written just "
            "before the snapshot may come twice, and those it reads go only with the whole list"
        )
        findings.append(Finding("note", subject, text, "Use frozen<list<…>>, or a set or map, where that matters."))
    return findings


async def _generations(config: ScyllaConfig, generations: Generations, table: str, *, first: bool) -> list[Finding]:
    try:
        told = await generations.told(table)
    except (EnvironmentProblem, Fatal) as error:
        where = config.metadata
        mend = f"GRANT SELECT ON KEYSPACE {where.keyspace} TO {config.user or 'USER'};"
        return [Finding("unfit", "generations", str(error), mend)]
    findings = _clock(config, told) if first else []
    if not told.generations_ms:
        message = "none is told yet; the first comes about a minute after the cluster started"
        findings.append(Finding("warning", f"generations of {table}", message))
    return findings


def _clock(config: ScyllaConfig, told: Told) -> list[Finding]:
    """The server's clock decides when a write is old enough; ours only shows in times of publishing."""
    if abs(told.clock_us) < SKEW_TOLD_US:
        return []
    message = (
        f"this machine's clock is {-told.clock_us / US:+.1f} s from the server's. Windows are taken by the server's; "
        f"if its nodes differ like that, confidence_window_s ({config.confidence_window_s:g}) must be longer"
    )
    return [Finding("warning", "clock", message, "Run an NTP client on this machine and on all nodes.")]


def _sharing(config: ScyllaConfig) -> Finding:
    shard = config.shard
    text = f"this is process {shard.number} of {shard.of}; each of them must run, under the same name"
    return Finding("note", "sharing", text)
