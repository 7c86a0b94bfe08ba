"""Files that only grow and are renamed: which file is which, in what order they are read, what is a whole line."""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from pipeline.core.errors import EnvironmentProblem, Fatal, PositionLost

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
"""What rotation makes of a file that has been read: left alone, whatever the pattern says."""


class FilePosition(msgspec.Struct, omit_defaults=True):
    """How far a file has been read. `number` is its place in the order of files; `finished`: a newer file has begun and
    this one was read to its end, so that it may vanish; `skipping`: the offset lies inside a line that is too long.
    """

    number: int
    name: str
    offset: int = 0
    finished: bool = False
    skipping: bool = False


class LogFile:
    """A file of one table, whatever it is called at the moment. It is held open until it is finished, so that deleting
    it takes nothing away from us and no other file can get its inode.
    """

    def __init__(self, path: Path, identity: str, position: FilePosition) -> None:
        self.path = path
        self.identity = identity
        self.position = position
        self._handle: BinaryIO | None = None

    def unread(self) -> bool:
        size = os.fstat(self._opened().fileno()).st_size
        if size < self.position.offset:
            raise PositionLost(
                f"{self.path} has {size} bytes and {self.position.offset} were read before: it was cut off. Files must "
                "only grow and be renamed (logrotate without copytruncate)."
            )
        return size > self.position.offset

    def read(self, bytes_max: int) -> bytes:
        """From the position on; the position stays."""
        handle = self._opened()
        handle.seek(self.position.offset)
        return handle.read(bytes_max)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _opened(self) -> BinaryIO:
        if self._handle is None:
            try:
                self._handle = self.path.open("rb")
            except FileNotFoundError:
                raise PositionLost(f"{self.path} vanished while it was read.") from None
            except OSError as error:
                raise EnvironmentProblem(f"{self.path} can't be read: {error.strerror}") from error
        return self._handle


class Listed(msgspec.Struct, frozen=True):
    """A file as it lies in the directory."""

    path: Path
    identity: str
    modified_ns: int


def list_files(directory: Path, pattern: str) -> list[Listed]:
    """Files with at least one whole line, oldest first. Raises EnvironmentProblem."""
    try:
        names = [name for name in os.listdir(directory) if fnmatch.fnmatchcase(name, pattern)]
        paths = [directory / name for name in names if not name.endswith(COMPRESSED)]
        found = [listed for path in paths if (listed := _listed(path)) is not None]
    except OSError as error:
        raise EnvironmentProblem(f"{error.filename or directory} can't be read: {error.strerror}") from error
    return sorted(found, key=lambda one: (one.modified_ns, one.path.name))


def _listed(path: Path) -> Listed | None:
    """The identity is the inode and what the file begins with, because inodes are used again."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            first = file.readline(1 << 16)
    except (FileNotFoundError, IsADirectoryError):
        return None  # renamed a moment ago; the next look finds it
    if not first.endswith(b"\n") and len(first) < 1 << 16:
        return None
    digest = hashlib.sha256(first).hexdigest()[:16]
    return Listed(path, f"{status.st_ino}-{digest}", status.st_mtime_ns)


def directory_identity(directory: Path) -> str:
    """Raises EnvironmentProblem when it is not there."""
    try:
        if not directory.is_dir():
            raise EnvironmentProblem(f"{directory} is no directory; mend 'directory' of the source.")
        return str(directory.stat().st_ino)
    except OSError as error:
        raise EnvironmentProblem(f"{directory} can't be read: {error.strerror}") from error


class Line(msgspec.Struct, frozen=True, gc=False):
    """A whole line without its end, and the offset behind it. `content` None: too long, only its beginning is shown."""

    content: bytes | None
    shown: bytes
    end: int


def whole_lines(file: LogFile, bytes_max: int, line_bytes_max: int) -> Iterator[Line]:
    """The next lines of a file, about `bytes_max` of them, and moves its position behind each. A last line without an
    end is left for later, unless it is too long already.
    """
    position = file.position
    chunk = file.read(bytes_max)
    if b"\n" not in chunk and len(chunk) == bytes_max and not position.skipping:
        chunk = file.read(line_bytes_max + 1)
    start = 0
    while (end := chunk.find(b"\n", start)) >= 0:
        content = chunk[start:end]
        position.offset += end + 1 - start
        start = end + 1
        if position.skipping:
            position.skipping = False
        elif len(content) > line_bytes_max:
            yield Line(None, content, position.offset)
        elif content.strip():
            yield Line(content, content, position.offset)
    rest = chunk[start:]
    if rest and (position.skipping or len(rest) > line_bytes_max):
        position.offset += len(rest)
        if not position.skipping:
            position.skipping = True
            yield Line(None, rest, position.offset)
    if position.offset >= 1 << 63:
        raise Fatal(f"{file.path} is larger than any file.")
