"""What a node of Cassandra tells of a source: whether its tables still have a change log, how full cdc_raw is, and
whether the sidecar reads it.

CQL tells only the first; the others lie on the node's disk and on its loopback. `ctxpipe connect` runs there and shows
all of it; from another machine a watch says that it can't see them.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec

from connectors.cassandra import node as nodes
from connectors.cassandra import segments
from connectors.cassandra.companion import LOST, lost_segments, no_cdc, node_files
from connectors.cassandra.config import CassandraConfig, SidecarConfig
from connectors.cassandra.sidecar import health
from connectors.cql.session import CqlSession, connect
from connectors.source import Finding
from connectors.watching import LEFT_S, Ebb, NodeHealth, SourceHealth, worst_first
from pipeline.core.clock import Clock
from pipeline.core.errors import EnvironmentProblem

_LOCAL = ("", "localhost", "127.0.0.1", "0.0.0.0", "::1")
_PORT = "http.port="


class OnDisk(msgspec.Struct, frozen=True):
    """What lies on this machine, where it is the node's: its files' settings, cdc_raw, segments that vanished unread;
    `port` is that of the sidecar's health check. `problem` says why there is nothing to see."""

    files: segments.NodeFiles | None = None
    picture: segments.Picture | None = None
    lost: Sequence[str] = ()
    port: int = 0
    problem: Finding | None = None


class NodeWatch:
    """Implements connectors.watching.Watching. Needs a login that may connect, nothing more: the schema is everybody's
    to read."""

    def __init__(self, config: CassandraConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._session: CqlSession | None = None
        self._ebb = Ebb()
        self._healthy_s: float | None = None

    async def look(self) -> SourceHealth:
        config = self._config
        if self._session is None:
            self._session = await connect(config)
        captured = await nodes.cdc_tables(self._session, config.keyspace)
        findings = [_log_finding(config, captured)]
        found = SourceHealth(source=config.name, connector="cassandra", up=True)
        if config.sidecar is None:
            message = "none is configured: others read the change log, and watch cdc_raw where they do"
            return msgspec.structs.replace(found, findings=worst_first([*findings, _note("sidecar", message)]))
        disk = await asyncio.to_thread(look_at_disk, config, config.sidecar)
        healthy = await health(disk.port) if disk.port else None
        findings += disk_findings(config, config.sidecar, disk, healthy, self._left_s(healthy))
        if disk.files is not None and disk.picture is not None:
            found = self._with_disk(found, config.sidecar, disk.files, disk.picture)
        return msgspec.structs.replace(found, sidecar_healthy=healthy, findings=worst_first(findings))

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _left_s(self, healthy: bool | None) -> float:
        """How long the sidecar has not been healthy, as far as this watch has seen."""
        now_s = self._clock.monotonic_s()
        if healthy or self._healthy_s is None:
            self._healthy_s = now_s
        return now_s - self._healthy_s

    def _with_disk(
        self, found: SourceHealth, settings: SidecarConfig, files: segments.NodeFiles, picture: segments.Picture
    ) -> SourceHealth:
        left = files.total_bytes - files.segment_bytes - picture.size_bytes
        self._ebb.note(self._clock.monotonic_s(), left)
        return msgspec.structs.replace(
            found,
            nodes=(NodeHealth(node_name(files), picture.size_bytes, files.total_bytes, len(picture.segments)),),
            floor_s=files.sync_s + settings.poll_interval_ms / 1000,
            headroom_s=self._ebb.seconds() if left >= 0 else 0.0,
        )


def look_at_disk(config: CassandraConfig, settings: SidecarConfig) -> OnDisk:
    """Blocks."""
    try:
        files = node_files(settings)
    except EnvironmentProblem as error:
        return OnDisk(problem=_note("cdc_raw", f"{_ELSEWHERE}: {error}"))
    if not files.cdc_enabled:
        return OnDisk(problem=Finding("unfit", "cdc_enabled", no_cdc(settings)))
    if not files.cdc_raw.is_dir():
        return OnDisk(problem=_note("cdc_raw", f"{_ELSEWHERE}: {files.cdc_raw} is not here"))
    lost = lost_segments(config, files)
    if lost:  # what the connector has just deleted because it was read counts as lost for a moment
        lost = sorted(set(lost) & set(lost_segments(config, files)))
    return OnDisk(files, segments.look(files), lost, settings.http_port or _told_port(config.data_directory))


def disk_findings(
    config: CassandraConfig, settings: SidecarConfig, disk: OnDisk, healthy: bool | None, left_s: float = 0.0
) -> list[Finding]:
    """`healthy`: what the sidecar says of itself, None when it does not answer; `left_s`: for so long it is not."""
    if disk.files is None or disk.picture is None:
        return [disk.problem] if disk.problem is not None else []
    findings = [segments.fill_finding(disk.picture, disk.files, settings.cdc_raw_warn_ratio)]
    if disk.lost:
        message = LOST.format(count=len(disk.lost), names=", ".join(disk.lost[:3]), source=config.name)
        findings.append(Finding("unfit", "cdc_raw", message, f"ctxpipe connect {config.name} --reset"))
    severity = "unfit" if left_s >= LEFT_S else "warning"
    if healthy is None:
        mend = f"Is `ctxpipe connect {config.name}` running on this machine?"
        message = f"does not answer on port {disk.port}" if disk.port else "has not run here"
        findings.append(Finding(severity, "sidecar", f"{message}: nobody reads the change log", mend))
    elif healthy is False:
        message = "says that it is not healthy"
        findings.append(Finding(severity, "sidecar", message, f"Is the node up? See {config.data_directory}."))
    return findings


def node_name(files: segments.NodeFiles) -> str:
    """The node's address as its file says it; this machine's name where that says nothing."""
    return socket.gethostname() if files.address in _LOCAL else files.address


def _log_finding(config: CassandraConfig, captured: Sequence[str]) -> Finding:
    off = [name for name in config.table_names if name not in captured]
    if not off:
        return Finding("ok", "change log", "the node keeps it for all tables")
    names = ", ".join(map(config.qualified, off))
    mend = " ".join(nodes.enable_cdc(config.keyspace, name) for name in off)
    return Finding("unfit", "change log", f"the node keeps none (CDC) of {names}, or they are gone", mend)


def _told_port(directory: Path) -> int:
    """What the running sidecar was told, 0 when none has run or that is not ours to read."""
    try:
        lines = (directory / "sidecar.properties").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.removeprefix(_PORT)) for line in lines if line.startswith(_PORT)), 0)


def _note(subject: str, message: str) -> Finding:
    return Finding("note", subject, message)


_ELSEWHERE = (
    "can't be seen from this machine; the metrics page of `ctxpipe connect`, which runs on the node, shows its fill"
)
