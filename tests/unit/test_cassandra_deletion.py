"""When a segment of Cassandra's change log that the sidecar moved aside is deleted: scripts of its log, real files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from connectors.cassandra import segments
from connectors.cassandra.companion import KEPT_TOLD, Companion
from connectors.cassandra.config import CassandraConfig
from connectors.cassandra.deliveries import Deliveries
from connectors.cassandra.jar import require_telling
from pipeline.core.clock import SystemClock
from pipeline.core.errors import EnvironmentProblem, Retryable
from tests.support.sidecar_log import ARRIVED, BEGUN, FAILED, note, note_end, write_jar

TOPIC = "sky.sky.weather"
FIRST, SECOND = "CommitLog-7-1", "CommitLog-7-2"


class Script:
    """A companion beside a sidecar of which there is only the log and what it did to files."""

    def __init__(self, folder: Path) -> None:
        for name in ("raw", "log", "data/relocated/archive", "data/relocated/error"):
            (folder / name).mkdir(parents=True)
        (folder / "cassandra.yaml").write_text(
            f"{{cdc_enabled: true, cdc_raw_directory: {folder}/raw, commitlog_directory: {folder}/log}}"
        )
        section = {"hosts": ["127.0.0.1"], "keyspace": "sky", "tables": ["weather"], "data_directory": folder / "data"}
        config = CassandraConfig.model_validate(
            {"name": "sky", **section, "sidecar": {"cassandra_yaml": folder / "cassandra.yaml"}}
        )
        assert config.sidecar is not None
        self.companion = Companion(config, config.sidecar, SystemClock())
        self.relocated = folder / "data/relocated"
        self.ledger = segments.Ledger(folder / "data/segments.json")
        self.sidecar = SimpleNamespace(sound=True, starts=1)
        one: Any = self.companion
        one._ledger, one._setup_made, one.sidecar = self.ledger, SimpleNamespace(relocated=self.relocated), self.sidecar

    @property
    def deliveries(self) -> Deliveries:
        return self.companion.deliveries

    def move_aside(self, name: str, folder: str = "archive") -> None:
        for ending in (".log", "_cdc.idx"):
            (self.relocated / folder / f"{name}{ending}").write_text("1\nCOMPLETED")

    def kept(self) -> list[str]:
        """After two looks, as many as it takes where nothing is in the way."""
        self.companion.look()
        self.companion.look()
        return segments.relocated_names(self.relocated)


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


def test_a_segment_is_kept_until_kafka_has_what_was_begun_when_it_ended(script: Script) -> None:
    note(script.deliveries, (BEGUN, TOPIC, 0), (BEGUN, TOPIC, 1), (ARRIVED, TOPIC, 0))
    note_end(script.deliveries, FIRST)
    script.move_aside(FIRST)
    assert script.kept() == [FIRST], "a batch of partition 1 is still on its way"
    assert segments.Ledger(script.relocated.parent / "segments.json").missing([], []) == [FIRST]
    note(script.deliveries, (BEGUN, TOPIC, 0), (ARRIVED, TOPIC, 1))
    assert script.kept() == [], "what was begun after its end is another segment's"


def test_only_the_segments_that_arrived_are_deleted(script: Script) -> None:
    note(script.deliveries, (BEGUN, TOPIC, 0))
    note_end(script.deliveries, FIRST)
    note(script.deliveries, (BEGUN, TOPIC, 0), (ARRIVED, TOPIC, 0))
    note_end(script.deliveries, SECOND)
    script.move_aside(FIRST)
    script.move_aside(SECOND)
    assert script.kept() == [SECOND]


def test_one_without_a_change_of_ours_goes_and_one_whose_end_was_not_told_stays(script: Script) -> None:
    note_end(script.deliveries, FIRST)
    script.move_aside(FIRST)
    script.move_aside(SECOND)
    assert script.kept() == [SECOND]


def test_a_batch_that_failed_is_never_there(script: Script) -> None:
    note(script.deliveries, (BEGUN, TOPIC, 0), (FAILED, TOPIC, 0))
    note_end(script.deliveries, FIRST)
    script.move_aside(FIRST)
    assert script.kept() == [FIRST]


def test_a_log_that_leaves_out_beginnings_proves_nothing(script: Script) -> None:
    note(script.deliveries, (ARRIVED, TOPIC, 0))
    note_end(script.deliveries, FIRST)
    script.move_aside(FIRST)
    assert script.kept() == [FIRST]


@pytest.mark.parametrize("changed", [{"sound": False}, {"starts": 2}])
def test_what_an_unsound_or_another_life_moved_aside_stays(script: Script, changed: dict[str, Any]) -> None:
    """Its next start brings it back; see segments.bring_back."""
    note_end(script.deliveries, FIRST)
    script.move_aside(FIRST)
    script.companion.look()
    for name, value in changed.items():
        setattr(script.sidecar, name, value)
    script.companion.look()
    assert segments.relocated_names(script.relocated) == [FIRST]
    script.deliveries.forget()
    assert script.kept() == [FIRST], "the next life has to read it to its end again"


def test_one_that_was_given_up_without_a_word_starts_the_source_again(script: Script) -> None:
    note_end(script.deliveries, FIRST)
    script.move_aside(FIRST, "error")
    script.companion.look()
    with pytest.raises(Retryable, match=f"gave up {FIRST}"):
        script.companion.look()
    assert segments.relocated_names(script.relocated) == [FIRST]


def test_many_that_are_kept_are_told_once(script: Script, caplog: pytest.LogCaptureFixture) -> None:
    note(script.deliveries, (BEGUN, TOPIC, 0))
    names = [f"CommitLog-7-{number}" for number in range(1, KEPT_TOLD + 1)]
    for name in names:
        note_end(script.deliveries, name)
        script.move_aside(name)
    assert script.kept() == sorted(names)
    assert [record.message.partition(" are kept")[0] for record in caplog.records] == [
        f"{KEPT_TOLD} segments of the change log that were read"
    ]
    note(script.deliveries, (ARRIVED, TOPIC, 0))
    assert script.kept() == []


def test_a_jar_that_does_not_tell_what_kafka_has_is_refused(tmp_path: Path) -> None:
    require_telling(write_jar(tmp_path / "good.jar"))
    with pytest.raises(EnvironmentProblem, match=r"another version of .*\.ProducerBatch, which does not log.*Mend"):
        require_telling(write_jar(tmp_path / "other.jar", ProducerBatch=b"Produced messages to {}"))
    (tmp_path / "no.jar").write_bytes(b"no jar")
    with zipfile.ZipFile(tmp_path / "empty.jar", "w"):
        pass
    for name in ("no.jar", "empty.jar", "missing.jar"):
        with pytest.raises(EnvironmentProblem, match=rf"{name} is no jar of the sidecar: .*Mend sidecar\.jar"):
            require_telling(tmp_path / name)
