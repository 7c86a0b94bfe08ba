"""The file behind the last known bundles: SQLite, so that a server that starts while Redis is away has answers."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from pipeline.core.errors import CtxpipeError
from pipeline.lookup.applied_watch import Seen
from pipeline.stores.store import Fetched
from schemas.bundle import decode_stored, encode_stored

FOLDER = "last_known"
ROWS_AT_ONCE = 50
"""In one step of the thread: as long as it has Python's lock, lookups wait."""
BUSY_TIMEOUT_S = 2.0
PRUNE_EVERY_ROWS = 5_000
_NEVER_US = 2**63 - 1
_APPLICATION = 0x63747870  # ctxp
_SCHEMA = 1
_NAME = re.compile(r"(?P<name>.+)\.(?P<number>\d+)\.sqlite")
_BESIDE = ("-wal", "-shm", "-journal")

_LOG = logging.getLogger("ctxpipe.lookup")

Entry = tuple[Fetched, Seen, int]
"""A bundle with its fragments, what was known of applied positions before it was read, and when it was seen."""


class FileTrouble(CtxpipeError):
    """The disk is full, the folder may not be written, another process holds the file: memory goes on without it."""


class _Refused(Exception):
    """What lies there is no file of ours, or not whole any more."""


class _Value(msgspec.Struct, array_like=True):
    bundle: bytes
    fragments: list[tuple[str, str, bytes]]
    late: list[tuple[str, str]]
    seen: bytes


_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE_VALUE = msgspec.msgpack.Decoder(_Value).decode
_DECODE_SEEN = msgspec.msgpack.Decoder(Seen).decode


class LastKnownFile:
    """Blocking calls for one thread at a time. Several processes may have the same file open: a row is replaced only by
    one that was seen later. All raise FileTrouble; what they were to do is then still to be done.

    A file that is torn, foreign or of another form is put aside as `….refused`, told in the log, and a new one begins,
    under the next number: nobody else's open file changes its name under it.
    """

    def __init__(self, folder: Path, name: str, rows_max: int) -> None:
        """`name` is of one context version."""
        self._folder, self._name, self._rows_max = folder, name, rows_max
        self._connection: sqlite3.Connection | None = None
        self._path: Path | None = None
        self._written_rows = 0
        self._begun_anew = False

    @property
    def path(self) -> Path | None:
        """None until it has been opened."""
        return self._path

    def read_newest(self, oldest_us: int) -> Iterator[list[tuple[str, Entry]]]:
        """What was seen since then, the newest first, at most `rows_max`, in lists. Deletes older ones."""
        self._delete_older(oldest_us)
        after, left = (_NEVER_US, ""), self._rows_max
        while left > 0:
            rows = self._read(after, min(ROWS_AT_ONCE, left))
            if not rows:
                return
            yield rows
            after, left = (rows[-1][1][2], rows[-1][0]), left - len(rows)

    def write(self, noted: Sequence[tuple[str, Entry]], forgotten: Sequence[str] | None) -> bool:
        """All of it or nothing. `forgotten` None: all that was there. True: the file was begun anew, and has nothing
        else. Call `clear_log` at last."""
        with _troubles(self._folder):
            try:
                self._write(noted, forgotten)
            except sqlite3.DatabaseError as error:
                if not _is_torn(error):
                    raise
                self._refuse(error)
                self._write(noted, forgotten)
            begun_anew, self._begun_anew = self._begun_anew, False
            return begun_anew

    def clear_log(self) -> None:
        """What was forgotten is overwritten in the file; the log beside it may still have it until then."""
        with _troubles(self._folder):
            if self._connection is not None:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def delete(self) -> None:
        """Closes it; nothing of it is left."""
        self.close()
        for path in files_of(self._folder, self._name):
            _delete(path)

    def _delete_older(self, oldest_us: int) -> None:
        with _troubles(self._folder):
            try:
                self._open().execute("DELETE FROM bundles WHERE seen_at_us < ?", (oldest_us,))
            except sqlite3.DatabaseError as error:
                if not _is_torn(error):
                    raise
                self._refuse(error)

    def _read(self, after: tuple[int, str], limit: int) -> list[tuple[str, Entry]]:
        """The next ones in the order of time and key, the last first; none where the file had to be begun anew."""
        with _troubles(self._folder):
            try:
                rows = self._open().execute(
                    "SELECT key, seen_at_us, value, sum FROM bundles WHERE (seen_at_us, key) < (?, ?) "
                    "ORDER BY seen_at_us DESC, key DESC LIMIT ?",
                    (*after, limit),
                )
                return [(key, _decoded(key, at_us, value, told)) for key, at_us, value, told in rows]
            except (_Refused, sqlite3.DatabaseError) as error:
                if isinstance(error, sqlite3.DatabaseError) and not _is_torn(error):
                    raise
                self._refuse(error)
                return []

    def _write(self, noted: Sequence[tuple[str, Entry]], forgotten: Sequence[str] | None) -> None:
        connection = self._open()
        rows = [_row(key, entry) for key, entry in noted]
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            if forgotten is None:
                connection.execute("DELETE FROM bundles")
            else:
                connection.executemany("DELETE FROM bundles WHERE key = ?", [(key,) for key in forgotten])
            connection.executemany(
                "INSERT INTO bundles (key, seen_at_us, value, sum) VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
                "seen_at_us = excluded.seen_at_us, value = excluded.value, sum = excluded.sum "
                "WHERE excluded.seen_at_us >= bundles.seen_at_us",
                rows,
            )
            self._written_rows += len(rows)
            if self._written_rows >= PRUNE_EVERY_ROWS or self._rows_max < PRUNE_EVERY_ROWS:
                self._written_rows = 0
                connection.execute(
                    "DELETE FROM bundles WHERE key IN "
                    "(SELECT key FROM bundles ORDER BY seen_at_us DESC, key DESC LIMIT -1 OFFSET ?)",
                    (self._rows_max,),
                )

    def _open(self) -> sqlite3.Connection:
        """Raises sqlite3.Error, OSError; a file that is not ours is refused here."""
        if self._connection is not None:
            return self._connection
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._path is None:
            self._path = self._newest_path()
        try:
            self._connection = _connect(self._path)
        except (_Refused, sqlite3.DatabaseError) as error:
            if isinstance(error, sqlite3.DatabaseError) and not _is_torn(error):
                raise
            self._refuse(error)
            self._connection = _connect(self._path)
        return self._connection

    def _newest_path(self) -> Path:
        numbers = [_number(path) for path in files_of(self._folder, self._name) if path.suffix == ".sqlite"]
        return self._folder / f"{self._name}.{max(numbers, default=1)}.sqlite"

    def _refuse(self, error: Exception) -> None:
        self.close()
        self._begun_anew = True
        assert self._path is not None
        refused, number = self._path, _number(self._path)
        self._path = self._folder / f"{self._name}.{number + 1}.sqlite"
        _LOG.warning(
            "last known bundles in %s can't be used: %s. They are put aside as %s.refused and begun anew.",
            refused,
            error,
            refused.name,
        )
        with suppress(FileNotFoundError):
            refused.rename(refused.with_name(f"{refused.name}.refused"))
        for ending in _BESIDE:
            _delete(refused.with_name(refused.name + ending))


def delete_others(folder: Path, names: Collection[str]) -> list[str]:
    """Deletes the files of context versions that are not among these, and gives their names; also what was put aside.
    A folder that is not there, or may not be written, has nothing to delete."""
    gone = []
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return []
    for path in paths:
        match = _NAME.match(path.name)
        if match is not None and match["name"] not in names:
            _delete(path)
            gone.append(path.name)
    return gone


def _connect(path: Path) -> sqlite3.Connection:
    # Bundles may hold personal data: SQLite gives its other files the permissions of this one.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    path.chmod(0o600)
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        _prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        schema = connection.execute("PRAGMA user_version").fetchone()[0]
        if tables == 0 and application == 0:
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {_SCHEMA}")
            connection.execute(
                "CREATE TABLE bundles (key TEXT PRIMARY KEY, seen_at_us INTEGER NOT NULL, value BLOB NOT NULL, "
                "sum INTEGER NOT NULL) STRICT"
            )
            connection.execute("CREATE INDEX newest ON bundles (seen_at_us, key)")
        elif application != _APPLICATION:
            raise _Refused("it was not written by ctxpipe")
        elif schema != _SCHEMA:
            raise _Refused(f"its form is {schema}, this version of ctxpipe writes {_SCHEMA}")


class _troubles:
    """Errors of the disk and of SQLite become FileTrouble."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.Error | OSError):
            reason = getattr(error, "strerror", None) or str(error)
            raise FileTrouble(f"last known bundles can't be kept in {self._folder}: {reason}") from error


def _is_torn(error: sqlite3.DatabaseError) -> bool:
    """The file's content is at fault: a full disk or a locked file passes."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "no such " in str(error)


def _row(key: str, entry: Entry) -> tuple[str, int, bytes, int]:
    fetched, seen, seen_at_us = entry
    assert fetched.bundle is not None
    fragments = [(unit, at, encode_stored(stored)) for (unit, at), stored in fetched.fragments.items()]
    value = _ENCODE(_Value(encode_stored(fetched.bundle), fragments, sorted(fetched.late), _ENCODE(seen)))
    return key, seen_at_us, value, _sum(key, seen_at_us, value)


def _decoded(key: str, seen_at_us: int, value: bytes, told: int) -> Entry:
    if _sum(key, seen_at_us, value) != told:
        raise _Refused(f"the row of {key!r} is not what was written")
    try:
        found = _DECODE_VALUE(value)
        fragments = {(unit, at): decode_stored(stored) for unit, at, stored in found.fragments}
        fetched = Fetched(decode_stored(found.bundle), fragments, frozenset(found.late))
        return fetched, _DECODE_SEEN(found.seen), seen_at_us
    except (ValueError, msgspec.DecodeError) as error:
        raise _Refused(f"the row of {key!r} can't be read: {error}") from error


def _sum(key: str, seen_at_us: int, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(f"{seen_at_us}:{key}".encode()))


def files_of(folder: Path, name: str) -> list[Path]:
    try:
        paths = sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    return [path for path in paths if (match := _NAME.match(path.name)) is not None and match["name"] == name]


def _number(path: Path) -> int:
    match = _NAME.match(path.name)
    assert match is not None
    return int(match["number"])


def _delete(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
