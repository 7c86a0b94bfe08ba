"""What this process saw last of every bundle: the rung of the lookup ladder for the time that Redis and its replica
are away. Nothing here is fresh, and nothing that Redis said is gone comes back."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from pipeline.core.clock import Clock
from pipeline.core.errors import Retryable
from pipeline.lookup.applied_watch import Seen
from pipeline.lookup.last_known_file import (
    FOLDER,
    ROWS_AT_ONCE,
    Entry,
    FileTrouble,
    LastKnownFile,
    delete_others,
    files_of,
)
from pipeline.stores.store import Fetched

WRITE_EVERY_S = 3.0
WRITE_ROWS, WRITE_PAUSE_S = 20, 0.1
"""A row takes 160 µs of the interpreter, which lookups lack: at most 3% of a core, and 20,000 bundles in 100 s."""
NOTED_EVERY_US = 1_000_000
RECONCILE_KEYS = 500
RECONCILE_PAUSE_S = 0.05
AWAY_PAUSE_S = 1.0
FORGOTTEN_KEPT_US = 30_000_000
FORGOTTEN_MAX = 50_000

T = TypeVar("T")

_LOG = logging.getLogger("ctxpipe.lookup")

Read = Callable[[Sequence[str]], Awaitable[list[Fetched]]]
SeenNow = Callable[[], Seen]


class LastKnown:
    """Of one context version, by root key text; used in one event loop. `note`, `forget`, `get` and `refresh` are
    synchronous and take some microseconds. Tell it only what the primary store answered: a replica may be behind.

    `run` keeps it on disk, `follow` reads anew what `refresh` named; both until they are cancelled. Then `close`.
    """

    def __init__(self, folder: Path | None, name: str, bundles_max: int, age_s_max: int, clock: Clock) -> None:
        """`folder`: the data directory; None keeps it in memory only. `name`: of the context version, see `name_of`."""
        self._bundles_max, self._age_us_max, self._clock = bundles_max, age_s_max * 1_000_000, clock
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._changed: dict[str, None] = {}
        self._gone: dict[str, None] = {}
        """Of what changed: what is to leave the file, which goes first."""
        self._stale: dict[str, None] = {}
        self._forgotten: OrderedDict[str, tuple[int | None, int]] = OrderedDict()
        self._file = None if folder is None else LastKnownFile(folder / FOLDER, name, bundles_max)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="last-known")
        self._loaded = self._troubled = self._anew = False

    def __len__(self) -> int:
        return len(self._entries)

    def keys(self) -> list[str]:
        """The last seen first."""
        return list(reversed(self._entries))

    def note(self, key: str, fetched: Fetched, seen: Seen, now_us: int) -> None:
        """What the store has just answered; `seen` is what was known of applied positions before it was asked. An
        answer that was overtaken by a later one is passed over, and so is one from before the bundle was forgotten."""
        if fetched.bundle is None or fetched.bundle.meta is None:
            self.forget(key)
            return
        known = self._entries.get(key)
        if known is not None and now_us - known[2] < NOTED_EVERY_US and _is_same(fetched, known[0]):
            self._entries.move_to_end(key)
            return  # asked for all the time: what was seen a moment ago stays as old as it is said to be
        if known is not None and (_is_older(fetched, known[0]) or fetched.late):
            return
        if self._forgotten and self._is_forgotten(key, fetched.bundle.counter, now_us):
            return
        self._entries[key] = fetched, seen, now_us
        self._entries.move_to_end(key)
        self._change(key)
        if len(self._entries) > self._bundles_max:
            # Also from the file: what is not remembered would not be noticed to be gone.
            self._change(self._entries.popitem(last=False)[0])

    def forget(self, key: str) -> None:
        """The store said that there is no such bundle."""
        known = self._entries.pop(key, None)
        if known is not None:
            self._change(key)
        bundle = None if known is None else known[0].bundle
        self._forgotten[key] = None if bundle is None else bundle.counter, self._clock.now_us()
        self._forgotten.move_to_end(key)
        if len(self._forgotten) > FORGOTTEN_MAX:
            self._forgotten.popitem(last=False)

    def get(self, key: str, now_us: int) -> tuple[Fetched, Seen, int] | None:
        """The bundle, what was known of applied positions then, and when it was seen, microseconds since 1970 UTC. None
        where nothing is known, or it is too old."""
        entry = self._entries.get(key)
        return None if entry is None or now_us - entry[2] > self._age_us_max else entry

    def refresh(self, keys: Iterable[str] | None) -> None:
        """The store said that these have changed, None: any of them may have. `follow` reads anew those that are known
        here."""
        known = self._entries if keys is None else (key for key in keys if key in self._entries)
        self._stale.update(dict.fromkeys(known))

    async def reconcile(self, read: Read, seen: SeenNow, keys: Sequence[str] | None = None) -> None:
        """Reads all that is known (or `keys` of it) anew, at a pace that leaves the store to lookups: deleted bundles
        are forgotten, others are as they are now. `seen` is asked before each reading. Call it at the start and after
        each time that the store was away. Raises what `read` raises; what was not reached stays to be refreshed."""
        wanted = self.keys() if keys is None else list(keys)
        for first in range(0, len(wanted), RECONCILE_KEYS):
            part = [key for key in wanted[first : first + RECONCILE_KEYS] if key in self._entries]
            try:
                await self._read_anew(part, read, seen)
            except BaseException:
                self.refresh(wanted[first:])
                raise
            if first + RECONCILE_KEYS < len(wanted):
                await self._clock.sleep(RECONCILE_PAUSE_S)

    async def follow(self, read: Read, seen: SeenNow) -> None:
        """Until it is cancelled."""
        while True:
            part = list(islice(self._stale, RECONCILE_KEYS))
            for key in part:
                del self._stale[key]
            try:
                await self.reconcile(read, seen, part)
            except (Retryable, TimeoutError):
                await self._clock.sleep(AWAY_PAUSE_S)
            await self._clock.sleep(RECONCILE_PAUSE_S)

    async def load(self) -> int:
        """What was kept on disk and is not known better; gives how many. `run` begins with it."""
        if self._loaded or self._file is None:
            return 0
        self._loaded, found = True, 0
        try:
            parts = self._file.read_newest(self._clock.now_us() - self._age_us_max)
            while part := await self._in_thread(lambda: next(parts, None)):
                found += self._take(part)
        except FileTrouble as error:
            self._tell(error)
        return found

    async def run(self) -> None:
        """Until it is cancelled."""
        await self.load()
        while True:
            await self._clock.sleep(WRITE_EVERY_S)
            await self.write()

    async def write(self, hurry: bool = False) -> None:
        """What has changed since the last time, at a pace that leaves the time to lookups, unless in a `hurry`. A disk
        that refuses is told of once; nothing is lost but the file."""
        self._forget_old()
        file, forgets = self._file, False
        if file is None:
            self._changed.clear()
            self._gone.clear()
            return
        try:
            while self._changed or self._gone or self._anew:
                forgets |= await self._write_part(file, ROWS_AT_ONCE if hurry else WRITE_ROWS)
                if self._changed and not hurry:
                    await self._clock.sleep(WRITE_PAUSE_S)
            if forgets:
                await self._in_thread(file.clear_log)
        except FileTrouble as error:
            self._tell(error)
            return
        if self._troubled:
            self._troubled = False
            _LOG.info("last known bundles are kept on disk again")

    async def _write_part(self, file: LastKnownFile, rows: int) -> bool:
        """Whether something was deleted."""
        keys, anew = list(islice(chain(self._gone, self._changed), rows)), self._anew
        for key in keys:
            self._gone.pop(key, None)
            self._changed.pop(key, None)
        self._anew = False
        noted = [(key, self._entries[key]) for key in keys if key in self._entries]
        forgotten = None if anew else [key for key in keys if key not in self._entries]
        try:
            begun_anew = await self._in_thread(lambda: file.write(noted, forgotten))
        except BaseException:
            for key in keys:
                self._change(key)
            self._anew |= anew
            raise
        if begun_anew:
            written = set(keys)
            self._changed.update(dict.fromkeys(key for key in self._entries if key not in written))
        return anew or bool(forgotten)

    def _forget_old(self) -> None:
        oldest_us = self._clock.now_us() - self._age_us_max
        while self._entries and next(iter(self._entries.values()))[2] < oldest_us:
            self._change(self._entries.popitem(last=False)[0])

    async def close(self) -> None:
        """Writes what has changed. After `run` has ended."""
        await self.write(hurry=True)
        if self._file is not None:
            await self._in_thread(self._file.close)
        self._thread.shutdown(wait=False)

    async def wipe(self) -> None:
        """Instead of `close`, of a context version that serves no more: nothing of it is left, in memory or on disk."""
        self._entries.clear()
        self._changed.clear()
        self._gone.clear()
        self._stale.clear()
        if self._file is not None:
            await self._in_thread(self._file.delete)
        self._thread.shutdown(wait=False)

    async def _read_anew(self, keys: list[str], read: Read, seen: SeenNow) -> None:
        if not keys:
            return
        before, then = [self._entries[key] for key in keys], seen()
        fetched = await read(keys)
        now_us = self._clock.now_us()
        for key, known, one in zip(keys, before, fetched, strict=True):
            if one.bundle is not None:
                self.note(key, one, then, now_us)
            elif self._entries.get(key) is known:
                self.forget(key)
            # else it was seen after this reading began

    def _is_forgotten(self, key: str, counter: int, now_us: int) -> bool:
        forgotten = self._forgotten.get(key)
        if forgotten is None:
            return False
        last, at_us = forgotten
        if now_us - at_us <= FORGOTTEN_KEPT_US and (last is None or counter <= last):
            return True
        del self._forgotten[key]
        return False

    def _change(self, key: str) -> None:
        """The file is to follow. While it can't, the list of what it lacks has a limit."""
        if key in self._entries:
            self._changed[key] = None
            self._gone.pop(key, None)
        else:
            self._gone[key] = None
            self._changed.pop(key, None)
        if len(self._gone) > FORGOTTEN_MAX:
            self._changed, self._gone, self._anew = dict.fromkeys(self._entries), {}, True

    def _take(self, part: list[tuple[str, Entry]]) -> int:
        found = 0
        for key, entry in part:
            if key in self._entries:
                continue
            if key in self._forgotten or len(self._entries) >= self._bundles_max:
                self._change(key)
                continue
            self._entries[key] = entry
            self._entries.move_to_end(key, last=False)
            found += 1
        return found

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _tell(self, error: FileTrouble) -> None:
        if not self._troubled:
            self._troubled = True
            _LOG.warning("%s. They are kept in memory; writing is tried again.", error)


def name_of(context: str, version: int) -> str:
    return f"{context}.v{version}"


def is_kept(folder: Path, name: str) -> bool:
    """Whether the data directory has something of a context version; blocks for a moment."""
    return any(path.suffix == ".sqlite" for path in files_of(folder / FOLDER, name))


def wipe_others(folder: Path, names: Iterable[str]) -> list[str]:
    """Deletes what the data directory keeps of context versions that serve no more; blocks. `names`: see `name_of`."""
    return delete_others(folder / FOLDER, set(names))


def _is_same(fetched: Fetched, known: Fetched) -> bool:
    assert fetched.bundle is not None and known.bundle is not None
    if len(fetched.fragments) != len(known.fragments):
        return False
    return fetched.bundle.counter == known.bundle.counter and all(
        fragment.counter == other.counter
        for fragment, other in zip(fetched.fragments.values(), known.fragments.values(), strict=False)
    )


def _is_older(fetched: Fetched, known: Fetched) -> bool:
    """Whether any part of it is from before what is known: then it was read before."""
    assert fetched.bundle is not None and known.bundle is not None
    if fetched.bundle.counter < known.bundle.counter:
        return True
    fragments = known.fragments
    for place, fragment in fetched.fragments.items():
        other = fragments.get(place)
        if other is not None and fragment.counter < other.counter:
            return True
    return False
