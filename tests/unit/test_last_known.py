"""Last known bundles: what is remembered, what is forgotten, and what a restart, a torn file or a full disk leave."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import sqlite3
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import Retryable
from pipeline.lookup.applied_watch import Seen
from pipeline.lookup.last_known import RECONCILE_KEYS, LastKnown, name_of, wipe_others
from pipeline.lookup.last_known_file import FOLDER, Entry, FileTrouble, LastKnownFile
from pipeline.stores.store import Fetched
from schemas.bundle import FragmentReference, Meta, SourceState, Stored

NOW_US = 1_767_323_045_678_901
NAME = name_of("flight", 3)
SEEN = Seen({"nyc": NOW_US, "fleet": None}, {"nyc": ("lsn", 99)}, {"nyc": frozenset({"7"})}, {"nyc": "token"})


class StepClock:
    """Sleeping passes its time, and gives others their turn."""

    def __init__(self) -> None:
        self.now = NOW_US
        self.slept_s: list[float] = []

    def now_us(self) -> int:
        return self.now

    def monotonic_s(self) -> float:
        return self.now / 1e6

    async def sleep(self, duration_s: float) -> None:
        self.slept_s.append(duration_s)
        self.now += int(duration_s * 1e6)
        await asyncio.sleep(0)


def bundle(counter: int = 1, body: bytes = b'{"id":1,"plane":}', plane: int = 1, late: bool = False) -> Fetched:
    meta = Meta("h", 3, {"nyc": SourceState("0" * 32, 5)}, [FragmentReference(16, "plane", "N1")], "acme")
    fragment = Stored(plane, Meta("p", 3), b'{"tail":"N1"}')
    fragments = {} if late else {("plane", "N1"): fragment}
    return Fetched(Stored(counter, meta, body), fragments, frozenset({("plane", "N1")} if late else ()))


GONE = Fetched(None, {})


def known(
    folder: Path | None, bundles_max: int = 100, clock: StepClock | None = None, age_s_max: int = 60
) -> LastKnown:
    return LastKnown(folder, NAME, bundles_max, age_s_max, clock or StepClock())


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / FOLDER).iterdir())


def test_it_answers_what_was_seen_last_and_nothing_that_is_too_old() -> None:
    last = known(None)
    last.note("1", bundle(), SEEN, NOW_US)
    assert last.get("1", NOW_US + 60_000_000) == (bundle(), SEEN, NOW_US)
    assert last.get("1", NOW_US + 60_000_001) is None
    assert last.get("2", NOW_US) is None


def test_the_oldest_makes_room() -> None:
    last = known(None, bundles_max=2)
    for key in ("1", "2", "1", "3"):
        last.note(key, bundle(), SEEN, NOW_US)
    assert last.keys() == ["3", "1"] and len(last) == 2


@pytest.mark.parametrize("older", [bundle(4, plane=7), bundle(5, plane=6), bundle(5, late=True)])
def test_an_answer_that_was_overtaken_changes_nothing(older: Fetched) -> None:
    last = known(None)
    last.note("1", bundle(5, plane=7), SEEN, NOW_US)
    last.note("1", older, Seen(), NOW_US + 1)
    assert last.get("1", NOW_US) == (bundle(5, plane=7), SEEN, NOW_US)


def test_what_was_forgotten_does_not_come_back_with_a_slow_answer() -> None:
    last = known(None)
    last.note("1", bundle(5), SEEN, NOW_US)
    last.note("1", GONE, SEEN, NOW_US)
    last.note("1", bundle(5), SEEN, NOW_US)
    assert last.get("1", NOW_US) is None
    last.note("1", bundle(6), SEEN, NOW_US)
    assert last.get("1", NOW_US) is not None, "it was made again"
    last.forget("unknown")
    last.note("unknown", bundle(5), SEEN, NOW_US)
    assert last.get("unknown", NOW_US) is None


async def test_a_restart_finds_it_again(tmp_path: Path) -> None:
    last = known(tmp_path)
    last.note("1", bundle(1), SEEN, NOW_US)
    last.note("é, \n", bundle(2, late=True), SEEN, NOW_US + 1)
    last.note("gone", bundle(1), SEEN, NOW_US)
    await last.write()
    last.forget("gone")
    await last.close()
    again = known(tmp_path)
    assert await again.load() == 2 and again.keys() == ["é, \n", "1"]
    assert again.get("1", NOW_US) == (bundle(1), SEEN, NOW_US)
    assert again.get("é, \n", NOW_US) == (bundle(2, late=True), SEEN, NOW_US + 1)
    await again.close()


async def test_what_is_seen_meanwhile_goes_before_the_file(tmp_path: Path) -> None:
    last = known(tmp_path)
    for key in ("1", "2", "3"):
        last.note(key, bundle(1), SEEN, NOW_US)
    await last.close()
    again = known(tmp_path)
    again.note("1", bundle(9), SEEN, NOW_US)
    again.forget("2")
    assert await again.load() == 1
    assert again.get("1", NOW_US) == (bundle(9), SEEN, NOW_US) and again.get("2", NOW_US) is None
    await again.close()
    third = known(tmp_path)
    await third.load()
    assert sorted(third.keys()) == ["1", "3"]
    await third.close()


async def test_the_file_has_the_newest_and_none_that_is_too_old(tmp_path: Path) -> None:
    clock = StepClock()
    last = known(tmp_path, clock=clock)
    for number in range(40):
        last.note(str(number), bundle(), SEEN, NOW_US + number * 1_000_000)
    await last.close()
    clock.now = NOW_US + 80_000_000
    again = known(tmp_path, bundles_max=15, clock=clock)
    assert await again.load() == 15 and again.keys() == [str(number) for number in range(39, 24, -1)]
    await again.close()
    clock.now += 60_000_000
    third = known(tmp_path, clock=clock)
    assert await third.load() == 0
    await third.close()
    connection = sqlite3.connect(tmp_path / FOLDER / f"{NAME}.1.sqlite")
    assert connection.execute("SELECT count(*) FROM bundles").fetchone() == (0,)
    connection.close()


async def test_what_made_room_is_not_in_the_file(tmp_path: Path) -> None:
    last = known(tmp_path, bundles_max=10)
    for number in range(30):
        last.note(str(number), bundle(), SEEN, NOW_US + number)
        if number % 7 == 0:
            await last.write()
    await last.close()
    again = known(tmp_path, bundles_max=100)
    assert await again.load() == 10 and again.keys() == [str(number) for number in range(29, 19, -1)]
    await again.close()


async def test_only_its_owner_may_read_it_and_what_is_forgotten_leaves_no_bytes(tmp_path: Path) -> None:
    last = known(tmp_path)
    last.note("1", bundle(body=b'{"secret":"xyzzy"}' * 500), SEEN, NOW_US)
    await last.write()
    folder = tmp_path / FOLDER
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(files(tmp_path)) == 3 and all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
    assert any(b"xyzzy" in path.read_bytes() for path in folder.iterdir())
    last.forget("1")
    await last.write()
    assert not any(b"xyzzy" in path.read_bytes() for path in folder.iterdir())
    await last.close()


def _torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000] + b"\xff" * 20_000)


def _foreign(path: Path) -> None:
    path.write_bytes(b"my notes\n" * 400)


def _of_another(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()


def _other_schema(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def _changed_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"tail"', b'"tall"'))


DAMAGES = [_torn, _foreign, _of_another, _other_schema, _changed_byte]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_file_that_is_not_right_is_put_aside_and_begun_anew(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await _damaged(damage, tmp_path)
    last = known(tmp_path)
    assert await last.load() == 0
    assert "begun anew" in caplog.text
    last.note("2", bundle(), SEEN, NOW_US)
    await last.close()
    await _holds_only(["2"], tmp_path)


@pytest.mark.parametrize("damage", DAMAGES[:4])
async def test_so_is_one_that_becomes_wrong_while_it_is_written(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last = known(tmp_path)
    last.note("1", bundle(), SEEN, NOW_US)
    await last.write()
    assert last._file is not None
    last._file.close()
    damage(tmp_path / FOLDER / f"{NAME}.1.sqlite")
    last.note("2", bundle(), SEEN, NOW_US)
    await last.close()
    assert "begun anew" in caplog.text
    await _holds_only(["2", "1"], tmp_path)


async def _holds_only(keys: list[str], folder: Path) -> None:
    assert f"{NAME}.1.sqlite.refused" in files(folder) and f"{NAME}.2.sqlite" in files(folder)
    again = known(folder)
    assert await again.load() == len(keys) and sorted(again.keys()) == sorted(keys)
    await again.wipe()
    assert files(folder) == []


async def _damaged(damage: Callable[[Path], None], folder: Path) -> None:
    last = known(folder)
    for number in range(60):
        last.note(str(number), bundle(), SEEN, NOW_US)
    await last.close()
    damage(folder / FOLDER / f"{NAME}.1.sqlite")


async def test_a_folder_that_cannot_be_written_is_told_once_and_memory_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FOLDER).write_text("a file where the folder should be")
    last = known(tmp_path)
    await last.load()
    for counter in range(3):
        last.note("1", bundle(counter), SEEN, NOW_US)
        await last.write()
    assert last.get("1", NOW_US) is not None
    assert len([record for record in caplog.records if "can't be kept" in record.message]) == 1
    (tmp_path / FOLDER).unlink()
    with caplog.at_level(logging.INFO):
        await last.close()
    assert "kept on disk again" in caplog.text
    again = known(tmp_path)
    assert await again.load() == 1
    await again.close()


async def test_a_full_disk_is_told_once_and_written_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    last = known(tmp_path, bundles_max=10, age_s_max=86_400)
    await last.load()
    assert last._file is not None and last._file._connection is not None
    last._file._connection.execute("PRAGMA max_page_count = 8")
    for number in range(60_000):
        last.note(str(number % 50_500), bundle(number, body=b"x" * 9_000), SEEN, NOW_US + number)
        if number % 20_000 == 5:
            await last.write()
    assert len([record for record in caplog.records if "full" in record.message]) == 1
    last._file._connection.execute("PRAGMA max_page_count = 100000")
    await last.close()
    again = known(tmp_path, age_s_max=86_400)
    await again.load()
    assert again.keys() == last.keys() and len(again) == 10
    await again.close()


class Store:
    """What Redis has; counts how it was read."""

    def __init__(self, bundles: dict[str, Fetched]) -> None:
        self.bundles, self.reads = bundles, list[int]()
        self.away = False

    async def read(self, keys: Sequence[str]) -> list[Fetched]:
        if self.away:
            raise Retryable("away")
        self.reads.append(len(keys))
        found = [self.bundles.get(key, GONE) for key in keys]
        await asyncio.sleep(0)
        return found


async def test_reconciling_forgets_what_is_gone_and_refreshes_the_rest_at_a_pace() -> None:
    clock = StepClock()
    last = known(None, bundles_max=2_000, clock=clock)
    for number in range(1_200):
        last.note(str(number), bundle(1), Seen(), NOW_US)
    store = Store({str(number): bundle(2) for number in range(600)})
    await last.reconcile(store.read, lambda: SEEN)
    assert sorted(last.keys(), key=int) == [str(number) for number in range(600)]
    found = [last.get(str(number), clock.now) for number in range(600)]
    assert all(one is not None and one[:2] == (bundle(2), SEEN) and one[2] >= NOW_US for one in found)
    assert store.reads == [500, 500, 200] and clock.slept_s == [0.05, 0.05]


async def test_a_bundle_that_is_made_while_it_is_reconciled_stays() -> None:
    last = known(None)
    last.note("1", bundle(1), SEEN, NOW_US)

    async def read(keys: Sequence[str]) -> list[Fetched]:
        last.note("1", bundle(3), SEEN, NOW_US)
        return [GONE]

    await last.reconcile(read, lambda: Seen())
    assert last.get("1", NOW_US) == (bundle(3), SEEN, NOW_US)


async def test_what_could_not_be_reconciled_is_followed_up() -> None:
    clock = StepClock()
    last = known(None, bundles_max=2_000, clock=clock)
    for number in range(RECONCILE_KEYS + 50):
        last.note(str(number), bundle(1), SEEN, NOW_US)
    store = Store({"7": bundle(2)})
    store.away = True
    with pytest.raises(Retryable):
        await last.reconcile(store.read, lambda: SEEN)
    task = asyncio.create_task(last.follow(store.read, lambda: SEEN))
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(last) == RECONCILE_KEYS + 50
    store.away = False
    await _until(lambda: len(last) == 1)
    assert last.keys() == ["7"]
    store.bundles["7"] = bundle(4)
    last.refresh(["7", "never seen"])
    await _until(lambda: (last.get("7", clock.now) or (GONE,))[0] == bundle(4))
    assert store.reads[-1] == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _until(true: Callable[[], bool]) -> None:
    """In turns of the event loop: what is awaited sleeps on a clock that passes by itself."""
    for _ in range(1_000):
        if true():
            return
        await asyncio.sleep(0)
    raise AssertionError("not within a thousand turns")


async def test_files_of_versions_that_serve_no_more_are_deleted(tmp_path: Path) -> None:
    for version in (2, 3):
        last = LastKnown(tmp_path, name_of("flight", version), 10, 60, StepClock())
        last.note("1", bundle(), SEEN, NOW_US)
        await last.close()
    (tmp_path / FOLDER / "flight.v2.1.sqlite.refused").write_text("x")
    (tmp_path / FOLDER / "notes.txt").write_text("somebody's")
    assert wipe_others(tmp_path, [NAME]) == ["flight.v2.1.sqlite", "flight.v2.1.sqlite.refused"]
    assert files(tmp_path) == ["flight.v3.1.sqlite", "notes.txt"]
    assert wipe_others(tmp_path / "none", []) == []


def test_an_earlier_row_of_another_process_replaces_no_later_one(tmp_path: Path) -> None:
    files_of_two = [LastKnownFile(tmp_path, NAME, 1_000) for _ in range(2)]
    for file, counter in zip(files_of_two, (9, 1), strict=True):
        file.write([("1", (bundle(counter), SEEN, NOW_US + counter))], [])
    assert [row for part in files_of_two[1].read_newest(0) for row in part] == [("1", (bundle(9), SEEN, NOW_US + 9))]
    for file in files_of_two:
        file.close()


def _writes(folder: Path, process: int, done: multiprocessing.Queue[str]) -> None:
    file = LastKnownFile(folder, NAME, 1_000)
    for turn in range(30):
        rows: list[tuple[str, Entry]] = [
            (str(key), (bundle(turn, body=b'{"process":%d}' % process), SEEN, NOW_US + turn)) for key in range(50)
        ]
        for tries in range(20):
            try:
                file.write(rows, [str(50 + turn % 5)])
                file.clear_log()
                break
            except FileTrouble:  # the other one has it: what was to be done is still to be done
                if tries == 19:
                    raise
    file.close()
    done.put("done")


def test_two_processes_on_one_folder_corrupt_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    done = context.Queue()
    processes = [context.Process(target=_writes, args=(tmp_path, number, done)) for number in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    file = LastKnownFile(tmp_path, NAME, 1_000)
    rows = [row for part in file.read_newest(0) for row in part]
    file.close()
    assert {key for key, _ in rows} == {str(key) for key in range(50)}
    assert {entry[2] for _, entry in rows} == {NOW_US + 29}, "a later one is never replaced by an earlier one"
    assert files_of_numbers(tmp_path) == [1]


def files_of_numbers(folder: Path) -> list[int]:
    return [int(path.name.split(".")[-2]) for path in folder.glob("*.sqlite")]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["note", "forget", "write", "restart"]), st.integers(0, 6), st.integers(0, 9)),
        max_size=40,
    )
)
def test_a_restart_shows_what_was_known_when_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("known")

    async def run() -> None:
        clock = StepClock()
        last, written = known(folder, bundles_max=4, clock=clock), list[str]()
        for what, key, counter in steps:
            clock.now += 40_000_000  # what was forgotten long ago may come again
            if what == "note":
                last.note(str(key), bundle(counter), SEEN, clock.now)
            elif what == "forget":
                last.forget(str(key))
            elif what == "write":
                await last.write()
                written = last.keys()
            else:
                last._thread.shutdown()  # as after kill -9
                last = known(folder, bundles_max=4, clock=clock)
                await last.load()
                alive = [one for one in written if last.get(one, clock.now) is not None]
                assert last.keys() == alive
                written = alive
        await last.close()

    asyncio.run(run())


@pytest.fixture(autouse=True)
def _told(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, "ctxpipe.lookup"):
        yield
