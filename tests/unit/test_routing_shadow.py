"""Copies of requests for a candidate: which, at whose cost, what is kept of both answers, and that nobody waits."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.core import metrics
from pipeline.core.errors import CtxpipeError
from pipeline.guard.errors import HarnessError
from pipeline.guard.routing.pairs import MemoryPairs, Pair, PairFile, key_of, read_pairs
from pipeline.guard.routing.shadow import alone, chosen
from pipeline.guard.values import ModelRequest, RawAnswer
from tests.support.guard_script import VALID, answers, fails, says
from tests.support.routing_world import GOOD, RoutingWorld

BAD = says("no idea")
KEY = "sk-abcdefghijklmnopqrstuvwxyz"


def shadowed(folder: Path, share: float = 1, candidate: dict[str, Any] | None = None, **more: Any) -> RoutingWorld:
    made = RoutingWorld(folder, **{"old": [GOOD], "new": [GOOD], **more})
    made.files.write({"active": "old", "candidate": {"endpoint": "new", "share": share, **(candidate or {})}})
    made.open()
    return made


def counted(outcome: str) -> float:
    return metrics.REGISTRY.get_sample_value("ctxpipe_guard_shadow_total", {"task": "t", "outcome": outcome}) or 0.0


async def test_a_pair_holds_both_answers_as_they_came(tmp_path: Path) -> None:
    made = shadowed(tmp_path, new=[says('{"answer": 43}')])
    result = await made.call(request_id="r1", tenant="acme", data={"secret": "of the application"})
    assert result.endpoint == "old"
    await made.run(made.guard.idle())
    (pair,) = made.pairs.pairs
    assert (pair.key, pair.group, pair.task) == (key_of(made.request(request_id="r1")), "acme", "t")
    assert (pair.active.output, pair.candidate.output) == ({"answer": 42}, {"answer": 43})
    assert (pair.active.endpoint, pair.candidate.endpoint, pair.candidate.model) == ("old", "new", "m")
    assert pair.candidate.raw == says('{"answer": 43}').body.decode()
    assert (pair.candidate.cost, pair.candidate.latency_ms, pair.candidate.tokens) == (0.017, 10.0, 17)
    assert b"of the application" not in msgspec.json.encode(pair)
    assert b"how many" not in msgspec.json.encode(pair)


async def test_the_tasks_own_measure_scores_both(tmp_path: Path) -> None:
    def right(request: ModelRequest, result: Any) -> dict[str, float]:
        return {"score": float(result.answered and result.output["answer"] == 42), "asked": 1.0}

    made = shadowed(tmp_path, new=[says('{"answer": 43}'), BAD], scores={"t": right})
    for number in range(2):
        await made.call(request_id=str(number))
        await made.run(made.guard.idle())
    first, second = made.pairs.pairs
    assert (first.active.scores["score"], first.candidate.scores["score"]) == (1.0, 0.0)
    assert (second.candidate.output, second.candidate.reason, second.candidate.malformed) == (
        None, "invalid_output", True,
    )  # fmt: skip
    assert second.candidate.raw == BAD.body.decode()
    assert second.candidate.scores == {"score": 0.0, "asked": 1.0}


@pytest.mark.parametrize("wrong", [float("nan"), 1.5, -1])
async def test_measures_outside_of_0_to_1_make_no_pair(tmp_path: Path, wrong: float) -> None:
    made = shadowed(tmp_path, scores={"t": lambda request, result: {"score": wrong}})
    before = counted("failed")
    assert (await made.call()).endpoint == "old"
    await made.run(made.guard.idle())
    assert (made.pairs.pairs, counted("failed")) == ([], before + 1)


@pytest.mark.parametrize("error", [KeyError("answer"), HarnessError("no recording"), OSError("the disk is full")])
async def test_what_fails_behind_the_answer_is_counted_and_nobody_notices(tmp_path: Path, error: Exception) -> None:
    def broken(request: ModelRequest, result: Any) -> dict[str, float]:
        raise error

    made = shadowed(tmp_path, scores={"t": broken})
    before = counted("failed")
    assert (await made.call()).endpoint == "old"
    await made.run(made.guard.idle())
    assert counted("failed") == before + 1


async def test_the_share_is_the_same_requests_every_time(tmp_path: Path) -> None:
    keys = [key_of(ModelRequest(task="t", messages=[], request_id=str(number))) for number in range(4000)]
    tenth = {key for key in keys if chosen(key, 0.1)}
    assert 330 <= len(tenth) <= 470
    assert tenth < {key for key in keys if chosen(key, 0.3)}
    assert all(chosen(key, 1) for key in keys)
    made = shadowed(tmp_path, share=0.3)
    for number in range(40):
        await made.call(request_id=str(number))
    await made.run(made.guard.idle())
    assert {pair.key for pair in made.pairs.pairs} == {key for key in keys[:40] if chosen(key, 0.3)}


def test_without_an_id_the_question_is_the_key() -> None:
    one, same, other = (
        ModelRequest(task="t", messages=[{"role": "user", "content": text}]) for text in ("a", "a", "b")
    )
    assert key_of(one) == key_of(same) != key_of(other)


async def test_nobody_waits_for_a_candidate_that_hangs(tmp_path: Path) -> None:
    made = shadowed(tmp_path, candidate={"concurrency_max": 2, "queue_max": 3})
    made.client.hangs = {"new/shadow"}
    before = counted("dropped")
    for _ in range(10):
        result = await made.call()
        assert (result.endpoint, result.took_s) == ("old", pytest.approx(0.01))
    assert counted("dropped") == before + 5
    assert made.client.asked["new/shadow"] == 2
    await made.run(made.guard.idle())
    assert [pair.candidate.reason for pair in made.pairs.pairs] == ["timeout"] * 4  # two, two, and its breaker is open
    assert counted("dropped") == before + 6


async def test_a_candidate_has_a_breaker_of_its_own(tmp_path: Path) -> None:
    made = shadowed(tmp_path, new=[fails("reset")], route={"others": ("new",)})
    for _ in range(5):
        await made.call()
        await made.run(made.guard.idle())
    assert made.client.asked["new/shadow"] == 3
    assert "new" not in made.guard.states()


async def test_a_candidate_has_a_budget_of_its_own(tmp_path: Path) -> None:
    """What it may cost is set aside before: one call of 5 tokens at most."""
    made = shadowed(tmp_path, candidate={"cost_per_hour_max": "0.5"})
    for number in range(30):
        await made.call(request_id=str(number), output_tokens_max=5, cost_max=Decimal("0.3"), tenant="acme")
        await made.run(made.guard.idle())
    spent = sum(pair.candidate.cost or 0 for pair in made.pairs.pairs)
    assert 0.3 < spent <= 0.5
    assert len(made.pairs.pairs) == made.client.asked["new/shadow"] < 30


async def test_rate_limits_and_failures_of_a_candidate_are_pairs(tmp_path: Path) -> None:
    made = shadowed(tmp_path, new=[answers(429, retry_after="1"), fails("cut"), GOOD])
    for _ in range(3):
        await made.call()
        await made.run(made.guard.idle())
        made.clock.now_s += 10
    assert [pair.candidate.reason for pair in made.pairs.pairs] == ["rate_limited", "cut", ""]
    assert [pair.candidate.scores["score"] for pair in made.pairs.pairs] == [0.0, 0.0, 1.0]


async def test_where_another_rung_answered_the_active_model_did_not(tmp_path: Path) -> None:
    made = shadowed(tmp_path, old=[BAD], third=[GOOD], route={"others": ("third",)})
    result = await made.call()
    assert result.endpoint == "third"
    await made.run(made.guard.idle())
    (pair,) = made.pairs.pairs
    assert (pair.active.output, pair.active.reason, pair.active.malformed) == (None, "invalid_output", True)
    assert (pair.active.scores["score"], pair.candidate.scores["score"]) == (0.0, 1.0)
    assert alone(result, "old").answered is False
    assert alone(result, "third").output == {"answer": 42}


async def test_an_application_whose_pairs_go_nowhere_asks_no_candidate(tmp_path: Path) -> None:
    made = RoutingWorld(tmp_path, old=[GOOD], new=[GOOD])
    made.pairs = None  # type: ignore[assignment]
    made.files.write({"active": "old", "candidate": {"endpoint": "new", "share": 1}})
    made.open()
    await made.call()
    await made.run(made.guard.idle())
    assert made.client.asked == {"old": 1}


async def test_closing_ends_copies_that_are_on_their_way(tmp_path: Path) -> None:
    made = shadowed(tmp_path)
    made.client.hangs = {"new/shadow"}
    await made.call()
    await made.run(made.guard.close())
    assert made.client.cancelled["new/shadow"] == 1
    assert made.pairs.pairs == []


async def test_no_secret_comes_into_a_pair(tmp_path: Path) -> None:
    leaks = says(f'{{"answer": 42, "note": "use {KEY}", "x": "my-own-configured-key"}}')
    made = shadowed(tmp_path, new=[leaks], endpoint={"api_key": "my-own-configured-key"}, route={"retries_max": 0})
    await made.call()
    await made.run(made.guard.idle())
    (pair,) = made.pairs.pairs
    text = msgspec.json.encode(pair).decode()
    assert "**********" in text
    assert KEY not in text
    assert "my-own-configured-key" not in text


def pair(number: int, text: str = "") -> Pair:
    side = {
        "endpoint": "old", "model": "m", "revision": "", "output": None, "reason": "", "raw": text, "latency_ms": 1.0,
        "cost": None, "malformed": False, "tokens": None, "scores": {"score": 1.0},
    }  # fmt: skip
    given = {"key": str(number), "task": "t", "group": "g", "at_us": number, "share": 1.0}
    return msgspec.convert({**given, "active": side, "candidate": side}, Pair)


async def test_pairs_are_kept_in_files_that_do_not_grow_for_ever(tmp_path: Path) -> None:
    file = PairFile(tmp_path / "pairs" / "t.jsonl", bytes_max=2000, files_max=3)
    for number in range(40):
        await file.put(pair(number))
    names = sorted(path.name for path in (tmp_path / "pairs").iterdir() if not path.name.endswith(".lock"))
    assert names == ["t.jsonl", "t.jsonl.1", "t.jsonl.2"]
    assert all(path.stat().st_size <= 2000 for path in (tmp_path / "pairs").iterdir())
    keys = [int(one.key) for one in read_pairs(tmp_path / "pairs" / "t.jsonl")]
    assert keys == list(range(keys[0], 40))
    assert 5 < len(keys) < 40


async def test_of_a_key_the_newest_pair_counts(tmp_path: Path) -> None:
    file = PairFile(tmp_path / "t.jsonl")
    for one in (pair(1, "first"), pair(2), pair(1, "second")):
        await file.put(one)
    assert [(one.key, one.active.raw) for one in read_pairs(tmp_path / "t.jsonl")] == [("2", ""), ("1", "second")]


async def test_a_line_that_a_kill_cut_is_passed_over_and_any_other_told(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    await PairFile(path).put(pair(1))
    path.write_bytes(path.read_bytes() + b'{"key": "2", "ta')
    assert [one.key for one in read_pairs(path)] == ["1"]
    path.write_bytes(b'{"key": 1}\n' + path.read_bytes())
    with pytest.raises(CtxpipeError, match=r"t\.jsonl:1: is no pair of answers"):
        read_pairs(path)
    with pytest.raises(CtxpipeError, match="can't be read"):
        read_pairs(tmp_path / "gone.jsonl")


async def test_a_disk_that_takes_nothing_loses_pairs_and_no_answer(tmp_path: Path) -> None:
    made = RoutingWorld(tmp_path, old=[GOOD], new=[GOOD])
    (tmp_path / "blocked").write_text("a file where the folder should be")
    made.pairs = PairFile(tmp_path / "blocked" / "t.jsonl")  # type: ignore[assignment]
    made.files.write({"active": "old", "candidate": {"endpoint": "new", "share": 1}})
    made.open()
    before = counted("failed")
    assert (await made.call()).output == json.loads(VALID)
    await made.run(made.guard.idle())
    assert counted("failed") == before + 1


async def test_answers_that_are_no_text_are_kept_as_they_came(tmp_path: Path) -> None:
    made = shadowed(tmp_path, new=[RawAnswer(status=200, body=b"\xff\xfe", took_s=0.01)])
    await made.call()
    await made.run(made.guard.idle())
    assert isinstance(made.pairs, MemoryPairs)
    assert [(one.candidate.reason, one.candidate.raw) for one in made.pairs.pairs] == [("not_an_answer", "base64://4=")]
