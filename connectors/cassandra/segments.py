"""The node's change log on disk: which segments wait in cdc_raw, how full it is, what becomes of those that are read.

Debezium's own clean-up deletes a segment also when it gave it up halfway or Kafka has not answered for what was in it,
and its offset moves on past such records. So ctxpipe does that work: the sidecar only moves segments aside, here they
are deleted when its log says that all went well and Kafka has it, and brought back when it died. It is started without
offsets and reads again what is still there; repetition is harmless, because writes merge by their timestamps.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from connectors.source import Finding
from pipeline.core.errors import EnvironmentProblem

MIB = 1 << 20
TOTAL_MIB_DEFAULT = 4096
VOLUME_PART_DEFAULT = 8
SEGMENT_BYTES = 32 * MIB
LOOKS = 3
_INDEX = "_cdc.idx"
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": MIB, "GiB": 1 << 30}
_SYNC = {  # commitlog_sync: how long changes are gathered, as newer and as older versions call it, and the default
    "periodic": ("commitlog_sync_period", "commitlog_sync_period_in_ms", "10000ms"),
    "group": ("commitlog_sync_group_window", "commitlog_sync_group_window_in_ms", "1000ms"),
}
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"\s*(\d+)\s*(ns|us|µs|ms|s|m|h|d)\s*")
_SIZE = re.compile(r"\s*(\d+)\s*(B|KiB|MiB|GiB)\s*")


class NodeFiles(msgspec.Struct, frozen=True, kw_only=True):
    """What cassandra.yaml says of the change log. `total_bytes` is what cdc_raw may hold, in segments. `sync_s`: so
    long a change may wait until it is on disk, where it can be read. `address` is the node's, "" where it is not said.
    """

    cdc_enabled: bool
    cdc_raw: Path
    commitlog: Path
    total_bytes: int
    segment_bytes: int
    blocks_writes: bool
    sync_s: float = 0.0
    address: str = ""


class Segment(msgspec.Struct, frozen=True):
    """A commit-log segment with changes in it. `synced`: changes up to there are on disk. `abandoned`: the node died
    while it wrote it; nobody will ever mark it as complete."""

    name: str
    synced: int
    completed: bool
    abandoned: bool

    @property
    def number(self) -> int:
        """Grows with time."""
        return number_of(self.name)


class Picture(msgspec.Struct, frozen=True):
    """cdc_raw at one moment."""

    segments: list[Segment]
    size_bytes: int


def node_files(cassandra_yaml: Path, commitlog: Path | None = None, cdc_raw: Path | None = None) -> NodeFiles:
    """Raises EnvironmentProblem for a file that can't be read or does not say where the directories are."""
    try:
        read: Any = yaml.safe_load(cassandra_yaml.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise EnvironmentProblem(
            f"{cassandra_yaml} can't be read: {error}. The sidecar runs beside a node, as a user that may read its "
            "files; mend sidecar.cassandra_yaml."
        ) from error
    settings = read if isinstance(read, dict) else {}
    raw = cdc_raw or _path(settings, "cdc_raw_directory", cassandra_yaml)
    volume = _existing(raw)
    default = min(TOTAL_MIB_DEFAULT * MIB, shutil.disk_usage(volume).total // VOLUME_PART_DEFAULT)
    return NodeFiles(
        cdc_enabled=bool(settings.get("cdc_enabled", False)),
        cdc_raw=raw,
        commitlog=commitlog or _path(settings, "commitlog_directory", cassandra_yaml),
        total_bytes=_bytes(settings, "cdc_total_space", "cdc_total_space_in_mb") or default,
        segment_bytes=_bytes(settings, "commitlog_segment_size", "commitlog_segment_size_in_mb") or SEGMENT_BYTES,
        blocks_writes=bool(settings.get("cdc_block_writes", True)),
        sync_s=_sync_s(settings),
        address=str(settings.get("broadcast_address") or settings.get("listen_address") or ""),
    )


def look(files: NodeFiles) -> Picture:
    """Segments in the order of time. Files that vanish meanwhile are read already."""
    segments, size_bytes = [], 0
    for path in _listed(files.cdc_raw):
        size_bytes += _size(path)
        if path.name.endswith(_INDEX):
            segment = _segment(path, files.commitlog)
            if segment is not None:
                segments.append(segment)
    return Picture(sorted(segments, key=lambda one: one.number), size_bytes)


def complete(files: NodeFiles, segment: Segment) -> None:
    """Says in the place of the node that died that nothing will follow; the sidecar would wait for that for ever.

    In place: a file that is moved here would be read a second time.
    """
    (files.cdc_raw / f"{segment.name}{_INDEX}").write_text(f"{segment.synced}\nCOMPLETED")


def fill_finding(picture: Picture, files: NodeFiles, warn_ratio: float) -> Finding:
    """How full cdc_raw is, and what happens when it is: when no further segment fits in."""
    ratio = picture.size_bytes / max(files.total_bytes, 1)
    is_full = picture.size_bytes + files.segment_bytes > files.total_bytes
    shown = f"{picture.size_bytes // MIB} of {files.total_bytes // MIB} MiB ({ratio:.0%})"
    if ratio < warn_ratio and not is_full:
        return Finding("ok", "cdc_raw", shown)
    mend = "Is `ctxpipe connect` running, and does Kafka take what it sends? Else raise cdc_total_space on the node."
    when = "now" if is_full else "when it is full"
    if files.blocks_writes:
        full = f"the node refuses writes to these tables {when}"
    else:
        full = f"the node deletes the oldest changes {when}, and they are lost (cdc_block_writes is false)"
    return Finding("unfit" if is_full else "warning", "cdc_raw", f"{shown}: {full}", mend)


def unread_bytes(picture: Picture, reached: Mapping[str, int]) -> int:
    """Bytes of changes on disk behind those that the sidecar has reached, by segment."""
    return sum(max(0, one.synced - reached.get(one.name, 0)) for one in picture.segments)


def synced(files: NodeFiles, name: str) -> int:
    """Up to where the changes of a segment are on disk; 0 when it is gone."""
    segment = _segment(files.cdc_raw / f"{name}{_INDEX}", files.commitlog)
    return segment.synced if segment is not None else 0


class Ledger:
    """Remembers, over restarts, which segments wait to be read, so that one which vanishes unread is noticed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending = self._stored()

    def compare(self, present: Iterable[str], relocated: Iterable[str]) -> list[str]:
        """Segments that are gone from cdc_raw without having been read. List `present` before `relocated`: a segment
        that moves in between is then in one of the two."""
        here = set(present) | set(relocated)
        lost = self.missing(present, relocated)
        self._keep(self._pending | here)
        return lost

    def missing(self, present: Iterable[str], relocated: Iterable[str]) -> list[str]:
        """The same, and nothing is noted."""
        return sorted(self._pending - set(present) - set(relocated))

    def forget(self) -> None:
        """Whatever was lost: everything is read anew."""
        self._keep(set())

    def done(self, read: Sequence[str]) -> None:
        """Before they are deleted."""
        self._keep(self._pending - set(read))

    def _keep(self, names: set[str]) -> None:
        if names != self._pending:
            self._pending = names
            partial = self._path.with_suffix(".partial")
            partial.write_bytes(msgspec.json.encode(sorted(names)))
            partial.replace(self._path)

    def _stored(self) -> set[str]:
        try:
            return set(msgspec.json.decode(self._path.read_bytes(), type=list[str]))
        except FileNotFoundError:
            return set()
        except msgspec.DecodeError as error:
            raise EnvironmentProblem(
                f"{self._path} can't be read: {error}. Restore it, or delete it to begin anew."
            ) from error


def compared(ledger: Ledger, files: NodeFiles, directory: Path) -> tuple[Picture, list[str], list[str]]:
    """(cdc_raw, what was moved aside, what is lost). Looks again before something counts as lost: what is brought back
    at that moment, when the sidecar is started, goes from the place that is looked at second to the first."""
    for _look in range(LOOKS):
        picture, moved = look(files), relocated_names(directory)
        lost = ledger.compare([one.name for one in picture.segments], moved)
        if not lost:
            break
    return picture, moved, lost


def relocated_names(directory: Path) -> list[str]:
    """Segments that the sidecar has moved aside."""
    return sorted({_name(path) for path in _relocated(directory)})


def given_up_names(directory: Path) -> list[str]:
    """Those among them of which it could not read or send something."""
    return sorted({_name(path) for path in _listed(directory / "error")})


def bring_back(directory: Path, files: NodeFiles) -> list[str]:
    """Moves what lies aside back into cdc_raw: whether all of it was sent is not known. The index comes last, it is
    what the sidecar looks for."""
    paths = sorted(_relocated(directory), key=lambda path: path.name.endswith(_INDEX))
    for path in paths:
        shutil.move(path, files.cdc_raw / path.name)
    return sorted({_name(path) for path in paths})


def delete(directory: Path, names: Sequence[str]) -> None:
    for path in _relocated(directory):
        if _name(path) in names:
            path.unlink(missing_ok=True)


def _relocated(directory: Path) -> list[Path]:
    return [path for folder in ("archive", "error") for path in _listed(directory / folder)]


def _segment(index: Path, commitlog: Path) -> Segment | None:
    name = _name(index)
    try:
        lines = index.read_text().splitlines()
    except FileNotFoundError:
        return None
    if not index.with_name(f"{name}.log").exists():
        return None  # the node may write the index of a segment that was given up halfway once more
    synced = int(lines[0]) if lines and lines[0].isdecimal() else 0
    completed = len(lines) > 1 and lines[1] == "COMPLETED"
    return Segment(name, synced, completed, not completed and not (commitlog / f"{name}.log").exists())


def number_of(name: str) -> int:
    """Of a segment's name, without its ending."""
    return int(name.rsplit("-", 1)[1])


def _name(path: Path) -> str:
    return path.name.removesuffix(_INDEX).removesuffix(".log")


def _listed(directory: Path) -> list[Path]:
    try:
        return [path for path in directory.iterdir() if path.name.startswith("CommitLog-")]
    except FileNotFoundError:
        return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _path(settings: dict[str, Any], key: str, yaml_path: Path) -> Path:
    if not settings.get(key):
        raise EnvironmentProblem(
            f"{yaml_path} leaves {key} to a default that only the node knows. Write it there, or to sidecar.{key}."
        )
    return Path(str(settings[key]))


def _existing(path: Path) -> Path:
    return next((one for one in (path, *path.parents) if one.exists()), Path("/"))


def _bytes(settings: dict[str, Any], key: str, old_key: str) -> int:
    """A size, which older versions wrote in MiB without a unit; 0: not said."""
    if settings.get(old_key):
        return int(settings[old_key]) * MIB
    match = _SIZE.fullmatch(str(settings.get(key, "")))
    return int(match[1]) * _UNITS[match[2]] if match else 0


def _sync_s(settings: dict[str, Any]) -> float:
    """0 where each write waits for its own (batch)."""
    known = _SYNC.get(str(settings.get("commitlog_sync", "periodic")))
    if known is None:
        return 0.0
    key, old_key, default = known
    if settings.get(old_key):
        return float(settings[old_key]) / 1000
    match = _DURATION.fullmatch(str(settings.get(key, default)))
    return int(match[1]) * _SECONDS[match[2]] if match else 0.0
