"""Tells beforehand whether a Cassandra source is fit, each finding with what mends it; it changes nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

from connectors.cassandra import node as nodes
from connectors.cassandra import segments
from connectors.cassandra.companion import lost_segments, no_cdc, node_files
from connectors.cassandra.config import INSTALL, CassandraConfig, SidecarConfig
from connectors.cassandra.heartbeat_table import heartbeat_findings
from connectors.cassandra.jar import ARTIFACTS, java_program
from connectors.cql.schema import TableSchema, full_name, read_table
from connectors.cql.session import CqlSession, connect
from connectors.cql.values import CqlType, UnknownType, decoder
from connectors.source import Finding
from pipeline.core.errors import CtxpipeError, EnvironmentProblem

VERSION_MIN = (4, 1)


async def check_cassandra(config: CassandraConfig) -> list[Finding]:
    """All findings; raises Retryable or EnvironmentProblem when no node can be reached or the login is refused."""
    session = await connect(config)
    try:
        node = await nodes.read_node(session)
        findings = _node(session, node, config)
        captured = await nodes.cdc_tables(session, config.keyspace)
        for name in config.table_names:
            table = await read_table(session, config.keyspace, name)
            if table is None:
                said = await nodes.missing(session, config.keyspace, name)
                mend = f"Mend tables in sources.{config.name}, or create the table."
                findings.append(Finding("unfit", config.qualified(name), said, mend))
            else:
                findings += table_findings(table, name in captured, node, config)
                findings += await _readable(session, table)
        if config.sidecar is not None:
            findings += await _others(session, config, captured)
            findings += await heartbeat_findings(session, config)
            findings += await asyncio.to_thread(sidecar_findings, config, config.sidecar, node)
        else:
            findings.append(Finding("note", "sidecar", "none is configured: only the snapshot is read by ctxpipe"))
    finally:
        await session.close()
    return findings


def table_findings(table: TableSchema, cdc: bool, node: nodes.Node, config: CassandraConfig) -> list[Finding]:
    """What the schema of a table tells."""
    subject = f"{table.keyspace}.{table.table}"
    findings = []
    if nodes.counters(table):
        return [Finding("unfit", subject, f"counters ({', '.join(nodes.counters(table))}) have no change log")]
    if not cdc:
        mend = nodes.enable_cdc(table.keyspace, table.table)
        findings.append(Finding("unfit", subject, "the node keeps no change log (CDC) of it", mend))
    unknown = [f"{one.name} {one.declared}" for one in table.columns if not _known(one.type)]
    if unknown:
        message = f"columns of types that this version does not know: {', '.join(unknown)}"
        findings.append(Finding("unfit", subject, message, "Take the table out of tables, or the columns out of it."))
    breaking, blurred, statics = nodes.breaking_columns(table), nodes.blurred_columns(table), nodes.statics(table)
    if breaking:
        message = f"{', '.join(breaking)}: types that the sidecar can't send; it fails at a write into one"
        severity = "unfit" if cdc or config.sidecar else "warning"
        findings.append(Finding(severity, subject, message, nodes.mend_breaking(table)))
    if garbled := nodes.garbled_columns(table):
        message = f"{', '.join(garbled)}: blobs inside of other values are sent wrong; don't use them in a context"
        findings.append(Finding("warning", subject, message))
    if blurred:
        message = (
            f"{', '.join(blurred)}: of collections that are not frozen the sidecar tells elements, but not whether "
            "they were added, removed or are all; don't use them in a context"
        )
        findings.append(Finding("warning", subject, message, "Use frozen<…> in a new column."))
    if statics:
        message = f"{', '.join(statics)}: static columns are not captured; don't use them in a context"
        findings.append(Finding("note", subject, message))
    if node.major < nodes.ELEMENT_TIMES_MAJOR and (blurred or breaking):
        message = f"{', '.join(blurred + breaking)}: Cassandra {node.version} does not tell when elements were written"
        findings.append(Finding("note", subject, message + ": the snapshot takes them for the oldest"))
    return findings or [Finding("ok", subject, "CDC is on; all columns can be captured")]


def sidecar_findings(config: CassandraConfig, settings: SidecarConfig, node: nodes.Node) -> list[Finding]:
    """What this machine tells: the node's files, cdc_raw, Java and jar. Blocks."""
    findings = []
    try:
        files = node_files(settings)
    except EnvironmentProblem as error:
        return [Finding("unfit", "sidecar", str(error))]
    if not files.cdc_enabled:
        findings.append(Finding("unfit", "cdc_enabled", no_cdc(settings)))
    elif not files.cdc_raw.is_dir():
        message = f"{files.cdc_raw} is not here: the sidecar must run on the node's machine, with its files"
        findings.append(Finding("unfit", "cdc_raw", message))
    else:
        findings.append(segments.fill_finding(segments.look(files), files, settings.cdc_raw_warn_ratio))
        lost = lost_segments(config, files)
        if lost:
            message = f"{len(lost)} segment(s) of the change log were deleted unread: {', '.join(lost[:3])}"
            findings.append(Finding("unfit", "cdc_raw", message, f"ctxpipe connect {config.name} --reset"))
    try:
        findings.append(Finding("ok", "java", java_program(settings.java)))
    except EnvironmentProblem as error:
        findings.append(Finding("unfit", "java", str(error)))
    if settings.jar != INSTALL and not Path(settings.jar).is_file():
        findings.append(Finding("unfit", "jar", f"{settings.jar} is no file", f"Write its path, or jar: {INSTALL}"))
    elif settings.jar == INSTALL and node.major not in ARTIFACTS:
        findings.append(Finding("unfit", "jar", f"there is no Debezium connector for Cassandra {node.version}"))
    return findings


def _node(session: CqlSession, node: nodes.Node, config: CassandraConfig) -> list[Finding]:
    version = tuple(int(part) for part in node.version.split("-")[0].split(".")[:2])
    where = f"{session.where} runs Cassandra {node.version}, cluster {node.cluster}"
    if version < VERSION_MIN:
        findings = [Finding("unfit", "version", f"{where}; its change log needs 4.1", "Upgrade Cassandra.")]
    else:
        findings = [Finding("ok", "version", where)]
    if node.partitioner != nodes.PARTITIONER:
        findings.append(Finding("unfit", "partitioner", f"{node.partitioner}: the snapshot needs Murmur3Partitioner"))
    if not config.local_datacenter:
        message = f"local_datacenter is not set; {node.datacenter} is taken, where the first host is"
        findings.append(Finding("note", "datacenter", message))
    return findings


async def _readable(session: CqlSession, table: TableSchema) -> list[Finding]:
    name = full_name(table.keyspace, table.table)
    try:
        await session.execute(f"SELECT * FROM {name} LIMIT 1", consistency="LOCAL_ONE")
    except CtxpipeError as error:
        user = session.server.user or "USER"
        mend = f"GRANT SELECT ON TABLE {name} TO {user};"
        return [Finding("unfit", f"{table.keyspace}.{table.table}", f"can't be read: {error}", mend)]
    return []


async def _others(session: CqlSession, config: CassandraConfig, captured: list[str]) -> list[Finding]:
    """The sidecar knows no list of tables: it reads every one of the keyspace."""
    findings = []
    found = await nodes.unparsable(session, config.keyspace)
    if found:
        message = nodes.UNPARSABLE.format(names=", ".join(found), keyspace=config.keyspace)
        findings.append(Finding("unfit", f"keyspace {config.keyspace}", message))
    others = [name for name in captured if name not in (*config.table_names, config.heartbeat_name)]
    for name in others:
        table = await read_table(session, config.keyspace, name)
        if table is not None and nodes.breaking_columns(table):
            message = "is not captured, but the sidecar reads it too, and fails at types that it can't send"
            findings.append(Finding("unfit", config.qualified(name), message, nodes.mend_breaking(table)))
    if others:
        names = ", ".join(others[:5])
        message = (
            f"the sidecar sends the changes of {len(others)} other table(s) with CDC to topics of an hour: {names}"
        )
        findings.append(Finding("note", "other tables", message))
    return findings


def _known(kind: CqlType) -> bool:
    try:
        decoder(kind)
    except UnknownType:
        return False
    return all(map(_known, kind.parameters))
