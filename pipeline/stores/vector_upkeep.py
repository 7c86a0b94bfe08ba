"""A vector index with its upkeep: merges and snapshots beside searches, in a folder that it has alone."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pipeline.core.clock import Clock
from pipeline.stores.vector_files import SnapshotRefused, forget_manifest, lock_folder, sweep
from pipeline.stores.vector_index import SegmentedIndex
from pipeline.stores.vector_limits import IndexLimits
from pipeline.stores.vector_merging import BuildFailed, choose, drop_dead, merge
from pipeline.stores.vector_snapshot import Snapshots

RETRY_S = 60.0
"""After a build that failed."""

_log = logging.getLogger(__name__)


class KeptIndex(SegmentedIndex):
    """Opens with what the folder's last snapshot has, else empty; `anew`: empty in any case. Without a folder nothing
    is kept. `close` it afterwards; it still answers searches then.

    Raises FolderTaken where another process has the folder open.
    """

    def __init__(
        self,
        folder: Path | None,
        space: str,
        dimension: int,
        fields: Sequence[str],
        limits: IndexLimits,
        clock: Clock,
        anew: bool = False,
    ) -> None:
        super().__init__(space, dimension, fields, limits)
        self._clock = clock
        self._upkeep = threading.Lock()
        self._stopping = threading.Event()
        self._kept = folder is not None
        self._resources = ExitStack()
        if folder is None:
            folder = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="ctxpipe-vectors-")))
        self._resources.callback(lock_folder(folder).close)
        self._snapshots = Snapshots(self, folder)
        if anew:
            self._forget(folder)
        else:
            self._load(folder)
        self._saved_changes = self.changes
        self._saved_s = self._clock.monotonic_s()
        self._retry_s = self._saved_s

    def maintain(self) -> None:
        """Blocks: merges what has to be merged, which takes up to minutes, and writes a snapshot when it is time."""
        with self._upkeep:
            try:
                while not self._stopping.is_set() and self._merge_once():
                    self._save_when_due()
                self._save_when_due()
            except OSError as error:
                _log.warning("the index of space %s is not kept on disk: %s", self.space, error)

    def close(self) -> None:
        """Blocks. Ends a build, and writes a snapshot of what changed since the last one."""
        self._stopping.set()
        with self._upkeep:
            try:
                if self._kept and self.changes != self._saved_changes:
                    self._save()
            except OSError as error:
                _log.warning("the index of space %s is not kept on disk: %s", self.space, error)
            finally:
                self._resources.close()
                self._kept = False

    def _merge_once(self) -> bool:
        """Whether there was something to merge, and it went well."""
        drop_dead(self)
        sources = choose(self.view[:-1], self.limits)
        if not sources or self._clock.monotonic_s() < self._retry_s:
            return False
        folder = self._snapshots.folder / self._snapshots.next_name("segment")
        done = False
        try:
            done = merge(self, sources, folder, self._stopping.is_set)
        except (BuildFailed, OSError, RuntimeError) as error:  # the last one is what faiss raises
            # Searches compare row by row meanwhile: slower, and as good.
            self._retry_s = self._clock.monotonic_s() + RETRY_S
            _log.warning("the index of space %s stays as it is for %g s: %s", self.space, RETRY_S, error)
        finally:
            if not done:
                shutil.rmtree(folder, ignore_errors=True)
        return done

    def _save_when_due(self) -> None:
        if self._stopping.is_set() or not self._kept:
            return
        changed = self.changes - self._saved_changes >= self.limits.snapshot_changes_min
        if changed and self._clock.monotonic_s() - self._saved_s >= self.limits.snapshot_interval_s:
            self._save()

    def _save(self) -> None:
        self._saved_s = self._clock.monotonic_s()
        self._saved_changes = self._snapshots.save()

    def _load(self, folder: Path) -> None:
        try:
            self._snapshots.load()
        except SnapshotRefused as error:
            _log.warning(
                "the index of space %s in %s is not used: %s; it is made anew from its topic", self.space, folder, error
            )
            self.clear()
            self._forget(folder)

    def _forget(self, folder: Path) -> None:
        forget_manifest(folder)
        sweep(folder, ())
