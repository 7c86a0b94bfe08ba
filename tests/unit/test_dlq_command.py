"""The parts of `ctxpipe dlq` that decide: names and numbers, times, what is told of expiry, and who is asked."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import run
from pipeline.commands._dlq_scope import moment_ms, scope_of
from pipeline.commands._dlq_show import duration, keys_text, letter_rows, retention_lines
from pipeline.core.errors import ConfigError
from pipeline.streams.decisions import Decision
from pipeline.streams.letter_box import Found, Retention
from pipeline.streams.letter_choice import LetterFilter, Listed
from pipeline.streams.letters import Heading

NOW_MS = 1_764_500_000_000
DAY_MS = 86_400_000
SPEC = """
context: {name}
version: 1
root: order
entities:
  order: {{source: shop, table: public.orders, key: [id]}}
fields: [id]
"""


@pytest.fixture
def config_path(tmp_path: Path) -> str:
    source = {"connector": "postgres", "dsn": "postgresql://nobody@127.0.0.1:1/none", "tables": ["public.orders"]}
    config = {
        "kafka": {"bootstrap_servers": "127.0.0.1:1"},
        "redis": {"url": "redis://127.0.0.1:1/0"},
        "sources": {"shop": source, "store": {**source, "slot": "other"}},
        "contexts": ["*.context.yaml"],
    }
    for name in ("orders", "others"):
        (tmp_path / f"{name}.context.yaml").write_text(SPEC.format(name=name))
    (tmp_path / "ctxpipe.yaml").write_text(json.dumps(config))
    return str(tmp_path / "ctxpipe.yaml")


def aside(key: str = '{"id":7}', table: str = "public.orders") -> Heading:
    return Heading(reason="too large", topic=f"shop.{table}", key=key, table=table)


def letter(topic: str = "shop.public.orders", offset: int = 3, **parts: Any) -> Heading:
    return Heading(**{"reason": "not JSON", "topic": topic, "partition": 0, "offset": offset, "digest": "d", **parts})


def test_a_context_has_its_letters_and_its_tables_rows_that_connectors_set_aside(config_path: str) -> None:
    scope = scope_of(config_path, "orders")
    assert scope.names == ["orders", "shop"] and scope_of(config_path, "").names == [
        "orders",
        "others",
        "shop",
        "store",
    ]
    assert (scope.label("orders", 3), scope.label("shop", 3)) == ("3", "shop/3")
    assert scope.numbers(["3", "shop/4", "5"]) == {"orders": [3, 5], "shop": [4]}
    limited = scope.limited(LetterFilter(), "shop")
    assert limited.covers(aside()) and not limited.covers(aside(table="public.items"))
    assert scope.limited(LetterFilter(), "orders").topics is None
    assert scope.keys_of(aside()) == ["7"] and scope.keys_of(aside("nonsense")) == []
    assert scope.keys_of(aside(table="public.items")) == [] and scope.keys_of(letter(bundle_keys=["1"])) == ["1"]


def test_all_words_that_name_no_letter_are_told_at_once(config_path: str) -> None:
    with pytest.raises(ConfigError) as told:
        scope_of(config_path, "orders").numbers(["x", "store/1", "-1", "7"])
    assert len(told.value.mistakes) == 3 and "'x' names no dead letter" in told.value.mistakes[0]
    with pytest.raises(ConfigError, match="of which context or source"):
        scope_of(config_path, "").numbers(["7"])
    with pytest.raises(ConfigError, match="the configuration has: orders, others, shop, store"):
        scope_of(config_path, "nobody")


def test_times_are_ages_or_moments() -> None:
    assert moment_ms("2h", NOW_MS) == NOW_MS - 7_200_000 and moment_ms("1.5 d", NOW_MS) == NOW_MS - 3 * DAY_MS // 2
    assert moment_ms("2026-11-30", NOW_MS) == round(datetime(2026, 11, 30, tzinfo=UTC).timestamp() * 1000)
    assert moment_ms("2026-11-30T08:00+01:00", 0) == moment_ms("2026-11-30T07:00Z", 0)
    with pytest.raises(ValueError, match="soon"):
        moment_ms("soon", NOW_MS)


@pytest.mark.parametrize(
    ("wanted", "accepted"),
    [
        (LetterFilter(), True), (LetterFilter(reason="NOT js"), True), (LetterFilter(reason="other"), False),
        (LetterFilter(tables=frozenset({"orders"})), True), (LetterFilter(tables=frozenset({"rders"})), False),
        (LetterFilter(tables=frozenset({"items", "public.orders"})), True),
        (LetterFilter(bundles=frozenset({"1"})), True), (LetterFilter(bundles=frozenset({"9"})), False),
        (LetterFilter(since_ms=1_000, until_ms=1_001), True), (LetterFilter(since_ms=1_001), False),
        (LetterFilter(until_ms=1_000), False), (LetterFilter(states=frozenset({"discarded"})), False),
    ],
)  # fmt: skip
def test_letters_are_chosen_by_what_they_are(wanted: LetterFilter, accepted: bool) -> None:
    found = Found(1, letter(failed_at_ms=1_000), 1_005)
    assert wanted.accepts(found, "waiting", ["1", "2"]) is accepted


def test_of_letters_with_one_identity_the_newest_stands_for_all() -> None:
    assert letter().identity == letter(reason="another").identity != letter(offset=4).identity
    assert aside().identity == aside().identity != aside('{"id":8}').identity
    texts = [letter("ctxpipe.a.v1.texts-wanted", offset=number, key="MQ==") for number in (1, 2)]
    assert texts[0].identity == texts[1].identity and texts[0].by_embedding
    assert not letter("ctxpipe.a.v1.dirty").by_embedding


def test_what_expires_is_told_before_and_after() -> None:
    assert retention_lines("a", Retention(), NOW_MS, 0, NOW_MS) == []
    assert retention_lines("a", Retention(kept_ms=30 * DAY_MS), NOW_MS, 0, NOW_MS) == [], "not so soon"
    assert retention_lines("a", Retention(kept_ms=DAY_MS), None, 0, NOW_MS) == [], "nothing waits"
    soon, gone, size = (
        retention_lines("a", Retention(kept_ms=7 * DAY_MS), NOW_MS - 4 * DAY_MS, 0, NOW_MS),
        retention_lines("a", Retention(kept_ms=DAY_MS), NOW_MS - 2 * DAY_MS, 1_200, NOW_MS),
        retention_lines("a", Retention(kept_bytes=1_000_000), NOW_MS, 0, NOW_MS),
    )
    assert len(soon) == 1 and "expires in 3 d: set retention.ms=-1" in soon[0]
    assert "1,200 of the dead letters of a went away" in gone[0] and "expires any moment" in gone[1]
    assert "up to 1,000,000 bytes" in size[0]
    assert [duration(s) for s in (0, 119, 120, 7_300, 200_000)] == ["0 s", "119 s", "2 min", "2 h", "2 d"]


def test_a_row_of_the_table_tells_why_it_failed_last() -> None:
    decision = Decision(outcome="failed", numbers=[(3, 3)], at_ms=9, why="still\nnot", attempts=2)
    listed = Listed(Found(3, letter(), 1_000), "failed", decision, ["1", "2", "3", "4"])
    head, (row,) = letter_rows([("3", listed)], with_state=True)
    assert head[2] == "STATE" and row[2:] == ("failed 2x", "shop.public.orders/0@3", "still not", "1, 2, 3 …")
    assert keys_text([]) == "-" and len(letter_rows([("3", listed)], with_state=False)[1][0]) == 5


def test_nothing_is_changed_before_a_person_said_what_and_why(
    config_path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*words: str) -> tuple[int, str]:
        return run(["dlq", "--config", config_path, *words]), capsys.readouterr().err

    assert (
        told("orders", "discard", "--all", "--because", " ", "--yes")[1].strip().endswith("say why nobody needs them")
    )
    assert "say --yes" in told("orders", "discard", "--all", "--because", "old")[1]
    for words in (
        ("orders", "redrive"),
        ("orders", "redrive", "3", "--all"),
        ("orders", "redrive", "3", "--table", "t"),
    ):
        assert "say which letters" in told(*words)[1], words
    assert "name the context or source" in told("redrive", "--all")[1]
    assert "within one context" in told("list", "--before", "3")[1]
    code, error = told("list")
    assert code == 3 and "Kafka at 127.0.0.1:1 does not answer" in error
    monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})("n\n"))
    assert told("orders", "discard", "1", "--because", "old")[0] == 3, "asked when it is known what"
