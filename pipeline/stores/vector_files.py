"""What a vector index keeps on disk: files of segments, a manifest with everybody's checksum, and a lock on the folder.

A file is written once, forced to disk, and named by a manifest afterwards; the manifest takes its predecessor's place
in one step. So a folder is worth its last manifest, whenever the process or the machine died.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from pipeline.core.errors import EnvironmentProblem

FORMAT = 1
MATRIX, RECORDS, INDEX = "matrix.f32", "records", "index.faiss"
_MANIFEST, _LOCK = "MANIFEST", "LOCK"
_READ_AT_ONCE = 1 << 20
_RECORDS_AT_ONCE = 500
_LENGTH_BYTES = 4


class FolderTaken(EnvironmentProblem):
    """Another index has the folder open."""


class SnapshotRefused(Exception):
    """Why what lies in a folder is not used."""


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One bundle's rows in a segment; see pipeline.stores.vector_segments.Entry."""

    key: str
    counter: int
    first_row: int
    rows: int
    details: bytes


class StoredFile(msgspec.Struct, frozen=True):
    """`name` relative to the folder; `checksum` is BLAKE2b, 32 bytes as hex."""

    name: str
    size_bytes: int
    checksum: str


class StoredSegment(msgspec.Struct, frozen=True):
    name: str
    rows: int
    indexed: bool


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`positions`: per partition the offset after the last record that the snapshot holds. `fields` are those whose
    values it keeps to narrow searches by; `head` holds the newest vectors, `state` what is current of the segments."""

    format: int = FORMAT
    space: str
    dimension: int
    fields: list[str]
    positions: dict[int, int]
    segments: list[StoredSegment]
    head: str
    state: str
    files: list[StoredFile]


class _Format(msgspec.Struct):
    format: int


def lock_folder(folder: Path) -> BinaryIO:
    """Makes the folder and holds it until the file is closed. Raises FolderTaken where another one holds it, in this
    process or elsewhere, and EnvironmentProblem where it can't be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK).open("ab")
    except OSError as error:
        raise EnvironmentProblem(f"the index folder {folder} can't be written: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise FolderTaken(
            f"another process has the index folder {folder} open; stop it, or give this one another data_directory"
        ) from error
    return file


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """On disk when this returns, its name only after sync_folder."""
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Of another process that wrote it and did not wait for the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes the names of its files last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def encode_records(records: Iterable[Record]) -> Iterator[bytes]:
    """In blocks, each behind its length."""
    encoder = msgspec.msgpack.Encoder()
    block: list[Record] = []
    for record in records:
        block.append(record)
        if len(block) == _RECORDS_AT_ONCE:
            yield _framed(encoder.encode(block))
            block = []
    if block:
        yield _framed(encoder.encode(block))


def read_records(path: Path) -> Iterator[Record]:
    """Raises SnapshotRefused for a file that is none."""
    decoder = msgspec.msgpack.Decoder(list[Record])
    with path.open("rb") as file:
        while length := file.read(_LENGTH_BYTES):
            try:
                yield from decoder.decode(file.read(int.from_bytes(length, "big")))
            except msgspec.DecodeError as error:
                raise SnapshotRefused(f"{path.name} can't be read: {error}") from error


def describe_file(folder: Path, name: str) -> StoredFile:
    """Reads it all."""
    digest, size = hashlib.blake2b(digest_size=32), 0
    with (folder / name).open("rb") as file:
        while part := file.read(_READ_AT_ONCE):
            digest.update(part)
            size += len(part)
    return StoredFile(name, size, digest.hexdigest())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """From now on the folder is this snapshot."""
    content = msgspec.json.encode(manifest)
    new = folder / f"{_MANIFEST}.new"
    write_file(new, [content, b"\n", _checksum(content), b"\n"])
    new.replace(folder / _MANIFEST)
    sync_folder(folder)


def read_manifest(folder: Path, space: str, dimension: int, fields: Sequence[str]) -> Manifest | None:
    """None where there is none. Raises SnapshotRefused for one that is damaged, of another release or another space,
    and where a file that it names is not as it was written."""
    try:
        content, checksum, rest = (folder / _MANIFEST).read_bytes().split(b"\n")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SnapshotRefused(f"its manifest can't be read: {error}") from error
    if checksum != _checksum(content) or rest:
        raise SnapshotRefused("its manifest is not as it was written")
    try:
        found = msgspec.json.decode(content, type=_Format).format
        if found != FORMAT:
            raise SnapshotRefused(f"its format is {found}, this release reads {FORMAT}")
        manifest = msgspec.json.decode(content, type=Manifest)
    except msgspec.DecodeError as error:
        raise SnapshotRefused(f"its manifest can't be read: {error}") from error
    _refuse_foreign(manifest, space, dimension, fields)
    for file in manifest.files:
        _refuse_changed(folder, file)
    return manifest


def sweep(folder: Path, keep: Collection[str]) -> None:
    """Removes all but these names, which are relative to the folder: what broken-off work left behind."""
    for path in folder.iterdir():
        if path.name in (_MANIFEST, _LOCK) or path.name in keep:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def forget_manifest(folder: Path) -> None:
    """What lies in the folder is no snapshot any more."""
    (folder / _MANIFEST).unlink(missing_ok=True)
    sync_folder(folder)


def _refuse_foreign(manifest: Manifest, space: str, dimension: int, fields: Sequence[str]) -> None:
    if manifest.space != space:
        raise SnapshotRefused(f"it belongs to space {manifest.space}")
    if manifest.dimension != dimension:
        raise SnapshotRefused(f"its vectors have {manifest.dimension} dimensions, those of the space {dimension}")
    if manifest.fields != list(fields):
        raise SnapshotRefused(f"it keeps the fields {', '.join(manifest.fields) or 'none'}, wanted are others")


def _refuse_changed(folder: Path, file: StoredFile) -> None:
    try:
        found = describe_file(folder, file.name)
    except OSError as error:
        raise SnapshotRefused(f"{file.name} can't be read: {error.strerror}") from error
    if found != file:
        raise SnapshotRefused(f"{file.name} is not as it was written")


def _framed(encoded: bytes) -> bytes:
    return len(encoded).to_bytes(_LENGTH_BYTES, "big") + encoded


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=32).hexdigest().encode()
