"""Snapshots of the vector index: whole or refused, alone in their folder, whenever the process dies."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.commands._search import open_vectors
from pipeline.core.errors import EnvironmentProblem
from pipeline.stores import vector_files, vector_merging, vector_snapshot
from pipeline.stores.spaces import Placed, SpaceRecord
from pipeline.stores.vector_limits import IndexLimits
from pipeline.stores.vectors import open_index
from tests.support.vector_logs import DIMENSION, FIELDS, SMALL, Pair, build_here, record, unit_rows
from tests.support.vector_writer import written_log


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """A closed index with an indexed segment, a sealed head and a head."""
    build_here(monkeypatch)
    pair, chance = Pair(tmp_path / "index"), random.Random(1)
    for number in range(45):
        pair.put(f"k{number}", record(unit_rows(chance, 1), 1, {"year": 2000 + number % 3}))
        if number == 32:
            pair.index.maintain()
    pair.note("k3", 2, {"year": 2001})
    assert [one.index is not None for one in pair.index.view] == [True, False, False]
    pair.index.close()
    return pair


def test_it_stands_where_it_stood(written: Pair) -> None:
    index = written.open(written.folder)
    assert index.positions() == {0: 45} and len(index) == 45
    assert index.digest() == written.reference.digest()
    index.close()
    kinds = sorted(path.name.partition("-")[0] for path in written.folder.iterdir())
    assert kinds == ["LOCK", "MANIFEST", "head", "segment", "segment", "state"]


def test_nothing_is_written_when_nothing_changed(written: Pair) -> None:
    before = {path: path.stat().st_mtime_ns for path in written.folder.rglob("*")}
    index = written.open(written.folder)
    index.maintain()
    index.close()
    assert {path: path.stat().st_mtime_ns for path in written.folder.rglob("*")} == before


def test_a_changed_byte_anywhere_is_refused(written: Pair, caplog: pytest.LogCaptureFixture) -> None:
    files = [path for path in written.folder.rglob("*") if path.is_file() and path.name != "LOCK"]
    assert {path.name.partition("-")[0] for path in files} == {
        "MANIFEST",
        "state",
        "matrix.f32",
        "records",
        "index.faiss",
    }
    chance = random.Random(2)
    for path in files:
        good = path.read_bytes()
        for place in {0, len(good) - 1, *(chance.randrange(len(good)) for _ in range(5))}:
            changed = bytearray(good)
            changed[place] ^= 1 << chance.randrange(8)
            _refused(written, path, bytes(changed), caplog)
        for torn in (good[:-1], good[: len(good) // 2], b"", good + b"\0"):
            _refused(written, path, torn, caplog)
        _refused(written, path, None, caplog)


def _refused(written: Pair, path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    folder = written.folder.parent / "changed"
    shutil.copytree(written.folder, folder)
    place = folder / path.relative_to(written.folder)
    if content is None:
        place.unlink()
    else:
        place.write_bytes(content)
    index = written.open(folder)
    assert len(index) == 0 and index.positions() == {}
    if path.name != "MANIFEST" or content is not None:
        assert "made anew from its topic" in caplog.text
    assert {one.name for one in folder.iterdir()} == {"LOCK"}
    index.close()
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("space", "dimension", "fields", "says"),
    [
        ("other", DIMENSION, FIELDS, "belongs to space s"),
        ("s", DIMENSION + 1, FIELDS, "have 8 dimensions, those of the space 9"),
        ("s", DIMENSION, ["year"], "keeps the fields year, kind"),
    ],
)
def test_what_belongs_to_another_space_is_refused(
    written: Pair, space: str, dimension: int, fields: list[str], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    index = open_index(written.folder, space, dimension, fields)
    assert len(index) == 0 and index.positions() == {} and says in caplog.text
    index.close()


def test_what_another_release_wrote_is_refused(written: Pair, caplog: pytest.LogCaptureFixture) -> None:
    _rewrite_manifest(written.folder, format=99)
    index = written.open(written.folder)
    assert len(index) == 0 and "its format is 99" in caplog.text
    index.close()


def test_a_state_that_does_not_fit_its_segments_is_refused(written: Pair, caplog: pytest.LogCaptureFixture) -> None:
    (state,) = written.folder.glob("state-*")
    state.write_bytes(b"\x80")
    _rewrite_manifest(written.folder, files=_described(written.folder))
    index = written.open(written.folder)
    assert len(index) == 0 and index.positions() == {} and "does not fit together" in caplog.text
    index.close()


def _described(folder: Path) -> list[dict[str, Any]]:
    names = [str(path.relative_to(folder)) for path in folder.glob("*-*/*")] + [
        path.name for path in folder.glob("st*")
    ]
    return [msgspec.to_builtins(vector_files.describe_file(folder, name)) for name in names]


def _rewrite_manifest(folder: Path, **fields: Any) -> None:
    """With a checksum that is right."""
    content = json.loads((folder / "MANIFEST").read_bytes().split(b"\n")[0]) | fields
    encoded = json.dumps(content).encode()
    checksum = hashlib.blake2b(encoded, digest_size=32).hexdigest().encode()
    (folder / "MANIFEST").write_bytes(encoded + b"\n" + checksum + b"\n")


def test_anew_begins_without_what_is_there(written: Pair) -> None:
    index = open_index(written.folder, "s", DIMENSION, FIELDS, anew=True)
    assert len(index) == 0 and {one.name for one in written.folder.iterdir()} == {"LOCK"}
    index.close()
    index = open_index(written.folder, "s", DIMENSION, FIELDS)
    assert len(index) == 0
    index.close()


def test_a_folder_has_one_process(written: Pair) -> None:
    index = written.open(written.folder)
    with pytest.raises(EnvironmentProblem, match=r"another process has the index folder .* open"):
        written.open(written.folder)
    opens = f"open_index(Path({str(written.folder)!r}), 's', 8, [])"
    script = f"from pathlib import Path\nfrom pipeline.stores.vectors import open_index\n{opens}"
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert other.returncode and "another process has the index folder" in other.stderr
    index.close()
    written.open(written.folder).close()


def test_processes_with_one_data_directory_keep_an_index_each(tmp_path: Path) -> None:
    space = SpaceRecord(space="s", state="serving", definition=b"", canaries=b"", dimension=DIMENSION, created_us=0)
    first, second = (open_vectors(space, [], tmp_path, False) for _ in range(2))
    for index, counter in ((first, 1), (second, 2)):
        index.apply([Placed(0, 0, "a", record(unit_rows(random.Random(counter), 1), counter))])
    second.close()
    first.close()
    assert {path.name for path in tmp_path.iterdir()} == {"s", "s-2"}
    first, second = (open_vectors(space, [], tmp_path, False) for _ in range(2))
    for index, counter in ((first, 1), (second, 2)):
        found = index.vectors_of("a")
        assert found is not None and found.counter == counter
        index.close()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="can't be written: Not a directory"):
        open_index(tmp_path / "file" / "index", "s", DIMENSION, [])


def test_large_segments_are_mapped(written: Pair) -> None:
    limits = IndexLimits(mapped_rows_min=20)
    index = open_index(written.folder, "s", DIMENSION, FIELDS, limits)
    assert not index.view[0].matrix.flags.writeable and index.view[0].matrix.base is not None
    found = index.search(unit_rows(random.Random(3), 1)[0], 45)
    index.close()
    shutil.rmtree(written.folder)
    assert index.search(unit_rows(random.Random(3), 1)[0], 45) == found  # what is mapped outlives its name


class Killed(BaseException):
    """Goes through everything, as a kill does."""


def test_a_kill_at_any_step_leaves_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_here(monkeypatch)
    steps = 0
    while True:
        pair, chance = Pair(tmp_path / f"index-{steps}"), random.Random(steps)
        for number in range(30):
            pair.put(f"k{number}", record(unit_rows(chance, 1), 1))
        pair.index.maintain()
        for number in range(70):
            pair.put(f"k{chance.randrange(50)}", record(unit_rows(chance, 1), 2 + number) if number % 5 else None)
        with monkeypatch.context() as patches:
            die_at(steps, patches)
            try:
                pair.index.maintain()
                done = True
            except Killed:
                done = False
        pair.index._resources.close()  # as the kernel does with a dead process's locks
        assert (pair.folder / "MANIFEST").exists()
        pair.reopen()
        assert pair.index.positions() == {0: 100}
        pair.agree(chance)
        pair.index.close()
        if done:
            break
        steps += 1
    assert steps > 15


def die_at(step: int, patches: pytest.MonkeyPatch) -> None:
    """The process dies at that operation on files; a file that was being written is there by half."""
    left = step

    def counted(function: Any, halfway: bool = False) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == -1:
                if halfway:
                    content = b"".join(bytes(part) for part in arguments[1])
                    arguments[0].write_bytes(content[: len(content) // 2])
                raise Killed
            if left < -1:
                raise Killed  # nothing is done after death, tidying up neither
            return function(*arguments, **named)

        return call

    for module in (vector_files, vector_merging, vector_snapshot):
        patches.setattr(module, "write_file", counted(vector_files.write_file, halfway=True))
        patches.setattr(module, "sync_folder", counted(vector_files.sync_folder))
    patches.setattr(Path, "replace", counted(Path.replace))
    patches.setattr(Path, "unlink", counted(Path.unlink))
    patches.setattr(Path, "mkdir", counted(Path.mkdir))
    patches.setattr(shutil, "rmtree", counted(shutil.rmtree))


def test_killed_again_and_again_it_comes_back(tmp_path: Path) -> None:
    """With builds in processes of their own, which must end with the one that is killed."""
    chance, folder = random.Random(os.getpid()), tmp_path / "index"
    pair = Pair(tmp_path / "unused")
    pair.index.close()
    seed = 4
    for placed in written_log(seed):
        pair.log.append(placed)
        pair.reference.apply([placed])
    words = [sys.executable, "-m", "tests.support.vector_writer", str(folder), str(seed)]
    positions = 0
    for _ in range(3):
        writer = subprocess.Popen(words)
        while not (folder / "MANIFEST").exists():
            time.sleep(0.02)
        time.sleep(0.5 + chance.random())
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        index = open_index(copy, "s", DIMENSION, FIELDS, SMALL)
        assert index.positions().get(0, 0) >= positions
        positions = index.positions()[0]
        pair.index = index
        pair.catch_up(index)
        pair.agree(chance)
        index.close()
        shutil.rmtree(copy)
