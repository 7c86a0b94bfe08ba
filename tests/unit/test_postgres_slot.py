"""After a promotion: positions before the fork go on, positions behind it are refused."""

from __future__ import annotations

from typing import Any

import pytest

from connectors.postgres.errors import SlotInUse, Undefined, mapped
from connectors.postgres.server import application_name, lsn_number, lsn_text, quote_table, quote_text, reader_of
from connectors.postgres.slot import Identity, _require_history
from pipeline.core.errors import EnvironmentProblem, Fatal, PositionLost, Retryable


class FakeConnection:
    """Answers TIMELINE_HISTORY."""

    def __init__(self, history: bytes) -> None:
        self._history = history

    async def execute(self, _command: bytes) -> FakeConnection:
        return self

    async def fetchone(self) -> tuple[str, bytes]:
        return ("00000003.history", self._history)


HISTORY = b"1\t0/2000\tno recovery target specified\n\n2\t0/5000\tno recovery target specified\n"


@pytest.mark.parametrize(
    ("timeline", "lsn", "fine"), [(2, 0x5000, True), (2, 0x5001, False), (1, 0x1FFF, True), (9, 1, False)]
)
async def test_timeline_history(timeline: int, lsn: int, fine: bool) -> None:
    connection: Any = FakeConnection(HISTORY)
    position = {"timeline": timeline, "lsn": lsn}
    if fine:
        await _require_history(connection, Identity("s", 3, 0x9000), position, "here", "mend")
        return
    with pytest.raises(PositionLost, match="mend"):
        await _require_history(connection, Identity("s", 3, 0x9000), position, "here", "mend")


class FakeError(Exception):
    def __init__(self, text: str, sqlstate: str | None) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("text", "state", "kind"),
    [
        ('replication slot "s" is active for PID 7', "55006", SlotInUse),
        ('can no longer get changes from replication slot "s"', "55000", PositionLost),
        ("requested WAL segment 00001 has already been removed", "58P01", PositionLost),
        ('replication slot "s" does not exist', "42704", PositionLost),
        ('publication "p" does not exist', "42704", PositionLost),
        ("Column used in the publication WHERE expression is not part of ...", "42P10", EnvironmentProblem),
        ('column "v" does not exist', "42703", Undefined),
        ('password authentication failed for user "u"', "28P01", EnvironmentProblem),
        ('database "x" does not exist', "3D000", EnvironmentProblem),
        ("permission denied for table t", "42501", EnvironmentProblem),
        ("terminating connection due to administrator command", "57P01", Retryable),
        ("the database system is starting up", "57P03", Retryable),
        ("connection refused", None, Retryable),
        ("something new", "XX000", Fatal),
    ],
)
def test_error_table(text: str, state: str | None, kind: type[Exception]) -> None:
    assert type(mapped(FakeError(text, state), "here")) is kind


def test_names_and_numbers() -> None:
    assert lsn_number("0/307E738") == 50849592 and lsn_text(50849592) == "0/307E738"
    assert lsn_number(lsn_text((7 << 32) + 5)) == (7 << 32) + 5
    assert quote_table('public.odd "name".x') == '"public"."odd ""name"".x"'
    assert quote_text("it's") == "'it''s'" and quote_text("a\\'b") == "E'a\\\\''b'"
    name = application_name("a_rather_long_name_of_a_source_in_this_place")
    assert len(name.encode()) <= 63 and reader_of(name) is not None
    assert reader_of("psql") is None and reader_of("ctxpipe x") is None
