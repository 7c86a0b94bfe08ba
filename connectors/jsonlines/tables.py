"""The files of one table in their order: found, numbered, read, followed through their renaming, forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from connectors.jsonlines.config import FilesConfig
from connectors.jsonlines.files import FilePosition, Line, LogFile, list_files, whole_lines
from pipeline.core.errors import PositionLost


class TableFiles:
    """Numbers grow: a file found later is newer, whatever its name; those found together go by their time."""

    def __init__(self, name: str, directory: Path, config: FilesConfig) -> None:
        self.name = name
        self._directory = directory
        self._config = config
        self._files: dict[str, LogFile] = {}
        self._next = 1
        self.taken = 0
        """Bytes of the last `lines`."""

    @property
    def next_number(self) -> int:
        return self._next

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Raises PositionLost when a file that had not been read to its end is gone or shorter."""
        listed = {one.identity: one for one in list_files(self._directory, self._config.files)}
        self._next = stored["next"]
        for identity, raw in stored["files"].items():
            position = msgspec.convert(raw, FilePosition)
            entry = listed.get(identity)
            if entry is not None:
                self._files[identity] = LogFile(entry.path, identity, position)
                self._files[identity].unread()
            elif not position.finished:
                raise PositionLost(
                    f"{self._directory}: the file that was {position.name} is gone or begins otherwise, and had been "
                    f"read up to byte {position.offset} only."
                )

    def stored(self) -> dict[str, Any]:
        files = {identity: msgspec.to_builtins(file.position) for identity, file in self._files.items()}
        return {"next": self._next, "files": files}

    def look(self) -> None:
        """Finds new files and new names of known ones; forgets finished ones that are gone."""
        listed = list_files(self._directory, self._config.files)
        for entry in listed:
            known = self._files.get(entry.identity)
            if known is None:
                position = FilePosition(self._next, entry.path.name)
                self._files[entry.identity] = LogFile(entry.path, entry.identity, position)
                self._next += 1
            else:
                known.path, known.position.name = entry.path, entry.path.name
        there = {entry.identity for entry in listed}
        for identity in [one for one, file in self._files.items() if file.position.finished and one not in there]:
            del self._files[identity]

    def lines(self, bytes_max: int, line_bytes_max: int) -> Iterator[tuple[LogFile, Line]]:
        """About `bytes_max` of what is new, older files first. Once it ends by itself, all files but unfinished last
        lines have been read.
        """
        left = bytes_max
        self.taken = 0
        for file in sorted(self._files.values(), key=lambda one: one.position.number):
            while left > 0 and file.unread():
                before = file.position.offset
                for line in whole_lines(file, left, line_bytes_max):
                    yield file, line
                if file.position.offset == before:
                    break  # a last line without its end
                left -= file.position.offset - before
                self.taken = bytes_max - left
            if file.position.number < self._next - 1 and not file.unread():
                file.position.finished = True
                file.close()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
