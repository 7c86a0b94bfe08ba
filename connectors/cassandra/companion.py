"""The sidecar with all that is looked after for it: its files, its lock, and the segments that it reads."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import yaml

from connectors.cassandra import segments
from connectors.cassandra.config import INSTALL, CassandraConfig, SidecarConfig
from connectors.cassandra.deliveries import Deliveries
from connectors.cassandra.jar import java_program, require_telling, sidecar_jar
from connectors.cassandra.node import Node
from connectors.cassandra.properties import (
    Setup,
    command,
    driver_text,
    logging_text,
    properties,
    properties_text,
)
from connectors.cassandra.sidecar import Launch, Sidecar
from connectors.source import Finding, LagReport
from pipeline.core.clock import Clock
from pipeline.core.errors import EnvironmentProblem, PositionLost, Retryable

log = logging.getLogger(__name__)

NO_SECURITY: Mapping[str, str] = {}
KEPT_TOLD = 8
"""So many segments that were read and may not be deleted are told."""

LOST = (
    "{count} segment(s) of the change log were deleted unread ({names}): the node does that when cdc_raw is full and "
    "cdc_block_writes is false, and nobody can tell what was in them. Start over with: ctxpipe connect {source} "
    "--reset (rows are read again; rows that were deleted meanwhile need a new version of the context)"
)


class Companion:
    """Call `start`, then `look` again and again; `running` is the task that fails when the sidecar keeps dying."""

    def __init__(self, config: CassandraConfig, settings: SidecarConfig, clock: Clock) -> None:
        self._config = config
        self._settings = settings
        self._clock = clock
        self._directory = config.data_directory.absolute()
        self._lock: IO[str] | None = None
        self._told = "ok"
        self._abandoned: set[str] = set()
        self._read: tuple[int, set[str]] = (0, set())
        self._kept_told = False
        self._reached: dict[str, int] = {}
        """How far the sidecar has read each segment; its offsets lag behind, and stand still when nothing follows."""
        self.files = node_files(settings)
        self.deliveries = Deliveries()
        self.sidecar: Sidecar | None = None
        self.running: asyncio.Task[None] | None = None

    @property
    def log_file(self) -> Path:
        return self._directory / "sidecar.log"

    async def start(
        self, node: Node, bootstrap_servers: str, anew: bool = False, security: Mapping[str, str] = NO_SECURITY
    ) -> None:
        """`anew` forgets segments that were lost; `security` are properties of its producer. Raises Retryable while
        another process of this source runs, EnvironmentProblem for what is missing."""
        if not self.files.cdc_enabled:
            raise EnvironmentProblem(no_cdc(self._settings))
        self._lock = _locked(self._directory)
        jar = Path(self._settings.jar)
        if self._settings.jar == INSTALL:
            jar = await asyncio.to_thread(sidecar_jar, node.major)
        await asyncio.to_thread(require_telling, jar)
        java = await asyncio.to_thread(java_program, self._settings.java)
        setup = self._setup(node, bootstrap_servers, security)
        self._write(setup)
        self._ledger = segments.Ledger(self._directory / "segments.json")
        if anew:
            self._ledger.forget()
        self._setup_made = setup
        launch = Launch(
            command=command(setup, java, jar, self._settings.heap_mib),
            log_file=self.log_file,
            http_port=setup.http_port,
            deaths_max=self._settings.deaths_max,
            restart_delay_s=self._settings.restart_delay_s,
            health_interval_s=self._config.watch_interval_s,
            before=self._before_start,
            on_read=self._note_read,
            tables=frozenset(map(self._config.qualified, self._sent_tables())),
            deliveries=self.deliveries,
        )
        self.sidecar = Sidecar(launch, self._clock)
        self.running = asyncio.create_task(self.sidecar.run(), name="sidecar")

    def look(self) -> None:
        """Looks at cdc_raw and at what was read. Raises PositionLost when segments vanished unread, Retryable when the
        sidecar gave one up and did not say so."""
        assert self.sidecar is not None
        picture, read, lost = segments.compared(self._ledger, self.files, self._setup_made.relocated)
        if lost:
            raise PositionLost(LOST.format(count=len(lost), names=", ".join(lost[:3]), source=self._config.name))
        self._complete_abandoned(picture)
        self._delete_read(self.sidecar, read)
        self._tell(segments.fill_finding(picture, self.files, self._settings.cdc_raw_warn_ratio))

    def oldest_segment(self) -> int | None:
        """The number of the oldest one that is not read to its end. Blocks."""
        return min((one.number for one in segments.look(self.files).segments), default=None)

    def lag(self) -> LagReport:
        picture = segments.look(self.files)
        state = "healthy" if self.sidecar is not None and self.sidecar.healthy else "sidecar is not healthy"
        return LagReport(segments.unread_bytes(picture, self._reached), picture.size_bytes, state)

    async def close(self) -> None:
        if self.running is not None:
            self.running.cancel()
            await asyncio.gather(self.running, return_exceptions=True)
        if self._lock is not None:
            self._lock.close()

    def _sent_tables(self) -> list[str]:
        heartbeat = self._config.heartbeat_name
        return [*self._config.table_names, *([heartbeat] if heartbeat else [])]

    def _setup(self, node: Node, bootstrap_servers: str, security: Mapping[str, str]) -> Setup:
        config, settings = self._config, self._settings
        return Setup(
            source=config.name,
            keyspace=config.keyspace,
            hosts=list(config.hosts),
            port=config.port,
            user=config.user,
            password=config.password.get_secret_value(),
            datacenter=config.local_datacenter or node.datacenter,
            cluster=node.cluster,
            node=node.identity,
            cassandra_yaml=self._cassandra_yaml(),
            directory=self._directory,
            bootstrap_servers=bootstrap_servers,
            http_port=settings.http_port or _free_port(),
            poll_interval_ms=settings.poll_interval_ms,
            producer={**security, **settings.producer},
        )

    def _cassandra_yaml(self) -> Path:
        """The node's own, or a copy that also says where the directories are which it leaves to defaults."""
        path, settings = self._settings.cassandra_yaml.absolute(), self._settings
        if settings.commitlog_directory is None and settings.cdc_raw_directory is None:
            return path
        said = {"commitlog_directory": str(self.files.commitlog), "cdc_raw_directory": str(self.files.cdc_raw)}
        copy = self._directory / "cassandra.yaml"
        _write_secret(copy, yaml.safe_dump({**yaml.safe_load(path.read_text()), **said}))
        return copy

    def _write(self, setup: Setup) -> None:
        for directory in (setup.offsets, setup.relocated / "archive", setup.relocated / "error"):
            directory.mkdir(parents=True, exist_ok=True)
        setup.logging_file.write_text(logging_text())
        _write_secret(setup.properties_file, properties_text(properties(setup)))
        _write_secret(setup.driver_file, driver_text(setup))

    def _before_start(self) -> None:
        """Everything that is still there is read again: how far Kafka really has it, its offsets do not tell."""
        for file in self._setup_made.offsets.glob("*.properties"):
            file.unlink()
        self._reached.clear()
        back = segments.bring_back(self._setup_made.relocated, self.files)
        if back:
            log.info("the sidecar reads again: %s", ", ".join(back))

    def _delete_read(self, sidecar: Sidecar, read: Sequence[str]) -> None:
        """What lay there at the last look already, in the same life, and Kafka has: it says what goes wrong with a
        segment before it moves it, but moves it without waiting for Kafka, which may be away for hours."""
        relocated, same_life = self._setup_made.relocated, self._read[0] == sidecar.starts
        seen = set(read) & self._read[1] if same_life and sidecar.sound else set()
        if given_up := seen & set(segments.given_up_names(relocated)):
            raise Retryable(f"The sidecar gave up {', '.join(sorted(given_up))}; it is read again.")
        sure = sorted(filter(self.deliveries.has_segment, seen))
        if sure:
            self._ledger.done(sure)
            segments.delete(relocated, sure)
            self.deliveries.drop_segments(sure)
        self._read = (sidecar.starts, set(read))
        self._tell_kept(len(read) - len(sure))

    def _tell_kept(self, count: int) -> None:
        is_many = count >= KEPT_TOLD
        if is_many and not self._kept_told:
            log.warning(
                "%d segments of the change log that were read are kept in %s until Kafka has answered for all that was "
                "in them; is Kafka up?",
                count,
                self._setup_made.relocated,
            )
        self._kept_told = is_many

    def _note_read(self, name: str) -> None:
        self._reached[name] = segments.synced(self.files, name)

    def _complete_abandoned(self, picture: segments.Picture) -> None:
        """Seen twice, so that a segment which the node is just closing is not taken for one."""
        abandoned = {one.name for one in picture.segments if one.abandoned}
        for segment in picture.segments:
            if segment.name in abandoned & self._abandoned:
                log.info("the node died while it wrote %s; it is read as far as it goes", segment.name)
                segments.complete(self.files, segment)
        self._abandoned = abandoned

    def _tell(self, finding: Finding) -> None:
        if finding.severity != self._told:
            level = logging.INFO if finding.severity == "ok" else logging.WARNING
            log.log(level, "cdc_raw: %s %s", finding.message, finding.mend)
        self._told = finding.severity


def node_files(settings: SidecarConfig) -> segments.NodeFiles:
    return segments.node_files(settings.cassandra_yaml, settings.commitlog_directory, settings.cdc_raw_directory)


def no_cdc(settings: SidecarConfig) -> str:
    return (
        f"The node keeps no change log: {settings.cassandra_yaml} does not say cdc_enabled: true. Write it there with "
        "a cdc_raw_directory, and restart the node."
    )


def lost_segments(config: CassandraConfig, files: segments.NodeFiles) -> Sequence[str]:
    """Of a source that does not run: what it would miss at its next start."""
    stored = segments.Ledger(config.data_directory / "segments.json")
    present = [one.name for one in segments.look(files).segments]
    return stored.missing(present, segments.relocated_names(config.data_directory / "relocated"))


def _locked(directory: Path) -> IO[str]:
    directory.mkdir(parents=True, exist_ok=True)
    lock = (directory / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise Retryable(f"Another process runs the sidecar of {directory}; one at a time.") from error
    return lock


def _write_secret(path: Path, text: str) -> None:
    """It may hold passwords."""
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
