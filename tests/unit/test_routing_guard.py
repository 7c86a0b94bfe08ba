"""A routed guard on a virtual clock: what it begins with, takes over, refuses, and takes back by itself."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import metrics
from pipeline.core.errors import ConfigError, EnvironmentProblem
from pipeline.guard.routing.state import RoutingState
from tests.support.guard_script import VALID, answers, fails, says
from tests.support.routing_world import GOOD, RoutingWorld, proves

BAD = says("no idea")
LIMITS = {"malformed_share_max": 0.05, "calls_min": 10, "window_calls": 50}


def world(folder: Path, **more: Any) -> RoutingWorld:
    made = RoutingWorld(folder, **{"old": [GOOD], "new": [GOOD], "third": [GOOD], **more})
    made.files.write({"active": "old"})
    return made


def active(made: RoutingWorld) -> str:
    return made.guard.in_force["t"].identity.endpoint


async def promote(made: RoutingWorld, to: str = "new", **more: Any) -> None:
    evidence = made.files.evidence(proves(active(made), to), f"{to}.json")
    made.files.write({"active": to, "evidence": evidence, **more})
    await made.look()


async def test_it_begins_with_the_guards_own_route_and_swaps_by_the_file(tmp_path: Path) -> None:
    made = world(tmp_path)
    made.open()
    assert (await made.call()).endpoint == "old"
    await promote(made)
    assert (await made.call()).endpoint == "new"
    assert (await made.call(task="another")).endpoint == "old"
    assert made.guard.generation == 2
    assert [labels for labels in gauge("ctxpipe_guard_routing_info") if labels[0] == "t"] == [("t", "new", 1.0)]
    await made.run(made.guard.idle())
    kept = made.files.kept()["tasks"]["t"]
    assert (kept["identity"]["endpoint"], kept["previous"]["identity"]["endpoint"]) == ("new", "old")


def gauge(name: str) -> list[tuple[Any, ...]]:
    found = next(metric for metric in metrics.REGISTRY.collect() if metric.name == name)
    return [(*sample.labels.values(), sample.value) for sample in found.samples]


def value(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def refused(reason: str) -> float:
    return value("ctxpipe_guard_routing_refused_total", reason=reason)


@pytest.mark.parametrize(
    "kind", ["nothing", "not_there", "other_bytes", "no_evidence", "not_better", "another", "broken", "gone"]
)
async def test_what_is_not_proved_changes_nothing(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    made = world(tmp_path)
    made.open()
    evidence = made.files.evidence(proves())
    path = tmp_path / "evidence.json"
    reason = {"nothing": "no_evidence", "not_there": "evidence_missing", "other_bytes": "evidence_digest",
              "no_evidence": "evidence_unreadable", "another": "evidence_of_another",
              "broken": "broken_file", "gone": "broken_file"}.get(kind, kind)  # fmt: skip
    if kind == "not_there":
        path.unlink()
    elif kind == "other_bytes":
        path.write_bytes(path.read_bytes() + b"\n")
    elif kind == "no_evidence":
        path.write_text("{}")
        evidence["sha256"] = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    elif kind == "not_better":
        evidence = made.files.evidence(proves(verdict="not_better", passed=False, why="it is worse"))
    elif kind == "another":
        evidence = made.files.evidence(proves(candidate="third"))
    before = refused(reason)
    made.files.write({"active": "new", **({} if kind == "nothing" else {"evidence": evidence})})
    if kind == "broken":
        made.files.routing.write_text("version: 1\ntasks: {t: {active: nowhere}}\n")
    if kind == "gone":
        made.files.routing.unlink()
    caplog.clear()
    for _ in range(3):
        await made.look()
    assert (await made.call()).endpoint == "old"
    assert refused(reason) == before + 1
    assert value("ctxpipe_guard_routing_current", task="t") == 0
    told = [record.getMessage() for record in caplog.records if record.name == "ctxpipe.routing"]
    assert len(told) == 1
    assert told[0].startswith(f"the routing stays as it was: {made.files.routing}:")
    made.files.write({"active": "new", "evidence": made.files.evidence(proves())})
    await made.look()
    assert active(made) == "new"
    assert value("ctxpipe_guard_routing_current", task="t") == 1


async def test_evidence_that_comes_after_the_file_is_seen(tmp_path: Path) -> None:
    """A checkout writes its files in any order."""
    made = world(tmp_path)
    made.open()
    evidence = made.files.evidence(proves())
    content = (tmp_path / "evidence.json").read_bytes()
    (tmp_path / "evidence.json").unlink()
    made.files.write({"active": "new", "evidence": evidence})
    await made.look()
    assert active(made) == "old"
    (tmp_path / "evidence.json").write_bytes(content)
    await made.look()
    assert active(made) == "new"


async def test_a_file_is_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    made = world(tmp_path)
    made.open()
    evidence = made.files.evidence(proves())
    made.files.routing.write_text(
        f"version: 1\ntasks:\n  t: {{active: new, evidence: {{file: evidence.json, sha256: {evidence['sha256']}}}}}\n"
        "  u: {active: third}\n"
    )
    await made.look()
    assert active(made) == "old"
    assert (await made.call(task="u")).endpoint == "old"


async def test_a_file_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    made = world(tmp_path)
    made.open()
    evidence = made.files.evidence(proves())
    made.files.write({"active": "new", "evidence": evidence})
    whole = made.files.routing.read_text()
    made.files.routing.write_text(whole[:20])
    looking = asyncio.ensure_future(made.guard.look())
    await made.clock.run_until(lambda: made.clock.waiting > 0)
    made.files.routing.write_text(whole)
    before = refused("broken_file")
    await made.clock.run(looking)
    assert (active(made), refused("broken_file")) == ("old", before)
    await made.look()
    assert active(made) == "new"


async def test_calls_that_are_on_their_way_end_where_they_began(tmp_path: Path) -> None:
    made = world(tmp_path)
    made.open()
    made.client.gates["old"] = asyncio.Event()
    waiting = asyncio.ensure_future(made.guard.call(made.request()))
    await asyncio.sleep(0)
    await promote(made)
    made.client.gates["old"].set()
    await made.clock.run(waiting)
    assert waiting.result().endpoint == "old"
    assert (await made.call()).endpoint == "new"


async def test_breakers_outlive_a_swap(tmp_path: Path) -> None:
    made = world(tmp_path, new=[fails("reset")], route={"others": ("new",)})
    made.files.write({"active": "old", "others": ["new"]})
    made.client._scripts = {**made.client._scripts, "old": [fails("reset")]}
    made.open()
    for _ in range(3):
        await made.call()
    assert made.guard.states()["new"] == "open"
    await promote(made)
    assert made.guard.states()["new"] == "open"
    assert [one.reason for one in (await made.call()).attempts][:1] == ["breaker_open"]


async def test_a_task_leaves_the_file_only_where_that_changes_nothing(tmp_path: Path) -> None:
    """Half a file is one with fewer tasks; nobody may lose a proved model by that."""
    made = world(tmp_path)
    made.open()
    await promote(made)
    made.files.write({"active": "old"}, name="u")
    await made.look()
    assert active(made) == "new"
    assert (await made.call()).endpoint == "new"
    made.files.write({"active": "old"})
    await made.look()
    made.files.write({"active": "old"}, name="u")
    await made.look()
    assert list(made.guard.in_force) == ["u"]
    assert (await made.call()).endpoint == "old"


async def test_a_start_needs_proof_where_nothing_was_in_force(tmp_path: Path) -> None:
    made = world(tmp_path)
    made.files.write({"active": "new"})
    with pytest.raises(ConfigError, match=r"routing.yaml:3: task 't': nothing proves that new \(m\) may answer"):
        made.open()
    made.files.write({"active": "new", "override_reason": "there was none before"})
    made.open()
    assert (await made.call()).endpoint == "new"
    made.files.write({"active": "new", "evidence": {"file": "gone.json", "sha256": "0" * 64}})
    made.files.state.unlink()
    with pytest.raises(ConfigError, match=r"gone\.json: the evidence can't be read"):
        made.open()


async def test_a_restart_goes_on_with_what_was_in_force(tmp_path: Path) -> None:
    made = world(tmp_path)
    made.open()
    await promote(made)
    await made.run(made.guard.close())
    (tmp_path / "new.json").unlink()
    made.open()
    assert (await made.call()).endpoint == "new"
    made.files.write({"active": "third"})
    before = refused("no_evidence")
    made.open()
    assert ((await made.call()).endpoint, refused("no_evidence")) == ("new", before + 1)
    made.files.write({"active": "old"})
    made.open()
    assert (await made.call()).endpoint == "old"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda made: made.files.routing.write_text("tasks: [\n"), "not YAML"),
        (lambda made: made.files.routing.unlink(), "no such file"),
        (lambda made: made.files.state.write_text("{}x"), "is no state of the routing"),
    ],
)
async def test_broken_files_at_start_are_told_and_end_it(tmp_path: Path, change: Any, told: str) -> None:
    made = world(tmp_path)
    made.open()
    await made.run(made.guard.close())
    change(made)
    with pytest.raises(ConfigError, match=told):
        made.open()


async def test_a_state_that_can_not_be_written_is_told_at_start(tmp_path: Path) -> None:
    made = world(tmp_path)
    made.files.state.parent.write_text("a file where the folder should be")
    with pytest.raises((EnvironmentProblem, ConfigError), match="state"):
        made.open()


async def test_another_model_under_the_same_name_needs_proof_at_start(tmp_path: Path) -> None:
    made = world(tmp_path)
    made.open()
    await made.run(made.guard.close())
    renamed = [one.model_copy(update={"model": "m2"}) for one in made.config.endpoints]
    made.config = made.config.model_copy(update={"endpoints": tuple(renamed)})
    with pytest.raises(ConfigError, match="in force is old with m, it asks m2 now"):
        made.open()


async def bad_until_taken_back(made: RoutingWorld, calls: int = 60) -> int:
    """How many calls it took."""
    for number in range(1, calls + 1):
        await made.call()
        if active(made) == "old":
            return number
    return 0


async def test_a_new_model_that_goes_bad_is_taken_back_within_one_call(tmp_path: Path) -> None:
    made = world(tmp_path, new=[GOOD] * 12 + [BAD])
    made.open()
    await promote(made, limits=LIMITS, others=["old"])
    taken = await bad_until_taken_back(made)
    assert 12 < taken <= 16
    assert (await made.call()).endpoint == "old"
    await made.run(made.guard.idle())
    kept = RoutingState.model_validate(made.files.kept())
    assert [(one.task, one.endpoint) for one in kept.taken_back] == [("t", "new")]
    assert value("ctxpipe_guard_routing_current", task="t") == 0
    assert "of its last" in kept.taken_back[0].why
    question = made.escalations.records[-1]
    assert (question.task, question.data["active_again"]) == ("t", "old")
    assert "ctxpipe route rollback t" in question.messages[0]["content"]
    assert value("ctxpipe_guard_swaps_total", task="t", kind="taken_back") >= 1


async def test_what_was_taken_back_stays_back_until_there_is_new_evidence(tmp_path: Path) -> None:
    made = world(tmp_path, new=[BAD] * 6 + [GOOD])
    made.open()
    await promote(made, limits=LIMITS, others=["old"])
    assert await bad_until_taken_back(made) == 10
    await made.run(made.guard.close())
    made.open()
    assert active(made) == "old"
    text = made.files.routing.read_text()
    made.files.routing.write_text(text.replace("calls_min: 10", "calls_min: 11"))
    await made.look()
    assert active(made) == "old"
    again = made.files.evidence(proves(pairs=600), "again.json")
    made.files.write({"active": "new", "evidence": again, "limits": LIMITS})
    await made.look()
    assert active(made) == "new"
    for _ in range(20):
        await made.call()
    assert active(made) == "new"


async def test_other_tasks_may_change_while_one_is_held_back(tmp_path: Path) -> None:
    made = world(tmp_path, new=[BAD])
    made.open()
    await promote(made, limits=LIMITS, others=["old"])
    await bad_until_taken_back(made)
    more = "tasks:\n  u: {active: third, override_reason: a task of its own}"
    made.files.routing.write_text(made.files.routing.read_text().replace("tasks:", more))
    await made.look()
    assert active(made) == "old"
    assert (await made.call(task="u")).endpoint == "third"


async def test_processes_on_one_state_follow_each_others_rollbacks(tmp_path: Path) -> None:
    first = world(tmp_path, new=[BAD])
    first.open()
    other = world(tmp_path)
    other.open()
    await promote(first, limits=LIMITS, others=["old"])
    await other.look()
    assert active(other) == "new"
    await bad_until_taken_back(first)
    await first.run(first.guard.idle())
    await other.look()
    assert active(other) == "old"
    await other.run(other.guard.close())
    assert other.escalations.records[-1].id == first.escalations.records[-1].id


async def test_late_calls_of_the_old_generation_take_nothing_back_twice(tmp_path: Path) -> None:
    made = world(tmp_path, new=[BAD])
    made.open()
    await promote(made, limits=LIMITS, others=["old"])
    many = [asyncio.ensure_future(made.guard.call(made.request())) for _ in range(40)]
    await made.clock.run(*many)
    assert active(made) == "old"
    assert len(made.guard._state.taken_back) == 1
    await made.run(made.guard.close())
    assert len([one for one in made.escalations.records if one.output_name == "routing"]) == 1


async def test_nobody_is_taken_back_after_its_time_of_trial(tmp_path: Path) -> None:
    made = world(tmp_path, new=[BAD])
    made.open()
    await promote(made, limits={**LIMITS, "watch_s": 3600}, others=["old"])
    made.clock.now_s += 3601
    for _ in range(30):
        await made.call()
    assert active(made) == "new"


async def test_rate_limits_and_open_breakers_are_failures_of_the_new_one(tmp_path: Path) -> None:
    made = world(tmp_path, new=[answers(429, retry_after="60")])
    made.open()
    await promote(made, limits={"failure_share_max": 0.2, "calls_min": 10}, others=["old"])
    assert await bad_until_taken_back(made) == 10


async def test_limits_on_costs_need_a_price(tmp_path: Path) -> None:
    made = world(tmp_path, endpoint={"price": "nobody knows"})
    made.open()
    await promote(made, limits={"cost_per_call_max": 1})
    assert active(made) == "old"
    made.files.write({"active": "old", "candidate": {"endpoint": "new", "share": 1, "cost_per_hour_max": 1}})
    before = refused("unpriced")
    await made.look()
    assert refused("unpriced") == before + 1


async def test_it_follows_the_file_by_itself_and_when_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ctxpipe.routing")
    made = world(tmp_path)
    async with made.open(look_every_s=0.01):
        made.files.write({"active": "new", "evidence": made.files.evidence(proves())})
        await made.clock.run_until(lambda: active(made) == "new")
    assert "the task t is answered by new in place of old (promoted)" in caplog.text
    async with made.open(look_every_s=1000):
        await asyncio.sleep(0)
        made.files.write({"active": "old"})
        made.guard.look_soon()
        await made.clock.run_until(lambda: active(made) == "old")


async def test_the_answer_is_the_guards(tmp_path: Path) -> None:
    made = world(tmp_path)
    made.open()
    result = await made.call()
    assert (result.output, result.rung, result.raw) == ({"answer": 42}, "primary", says(VALID).body)


async def test_late_calls_of_one_trial_say_nothing_of_the_next(tmp_path: Path) -> None:
    """The same model, promoted again with other evidence, begins anew: the tenth bad call of the first time is late."""
    made = world(tmp_path, new=[BAD])
    made.open()
    await promote(made, limits=LIMITS, others=["old"])
    for _ in range(9):
        await made.call()
    asked = made.client.asked["new"]
    made.client.gates["new"] = asyncio.Event()
    made.clock.now_s += 60  # its breakers let one through
    late = asyncio.ensure_future(made.guard.call(made.request()))
    await made.clock.run_until(lambda: made.client.asked["new"] > asked)
    made.files.write({"active": "old"})
    await made.look()
    again = made.files.evidence(proves(pairs=600), "again.json")
    made.files.write({"active": "new", "evidence": again, "limits": LIMITS, "others": ["old"]})
    await made.look()
    made.client.gates.pop("new").set()
    await made.clock.run(late)
    assert made.guard._state.taken_back == ()
    assert active(made) == "new"


async def test_a_change_of_the_ladder_does_not_begin_a_new_trial(tmp_path: Path) -> None:
    made = world(tmp_path, new=[BAD])
    made.open()
    limits = {**LIMITS, "watch_s": 3600}
    await promote(made, limits=limits, others=["old"])
    made.clock.now_s += 3000
    evidence = made.files.evidence(proves(), "new.json")
    made.files.write({"active": "new", "evidence": evidence, "limits": limits, "others": ["old", "third"]})
    await made.look()
    made.clock.now_s += 700
    for _ in range(30):
        await made.call()
    assert active(made) == "new"


@pytest.mark.parametrize("told", [{"previous": "old"}, {}])
async def test_a_new_process_knows_who_was_before_from_the_file_or_the_evidence(
    tmp_path: Path, told: dict[str, str]
) -> None:
    made = world(tmp_path, new=[BAD])
    made.files.write(
        {"active": "new", "evidence": made.files.evidence(proves()), "limits": LIMITS, "others": ["old"], **told}
    )
    made.open()
    assert active(made) == "new"
    assert await bad_until_taken_back(made) == 10
    assert (await made.call()).endpoint == "old"


async def test_nobody_goes_back_to_an_endpoint_that_is_gone(tmp_path: Path) -> None:
    """It was taken out of the configuration after a swap that went well; calls must not pay for that later."""
    made = world(tmp_path, new=[BAD], route={"local": ("third",)})
    made.open()
    await promote(made, limits=LIMITS)
    await made.run(made.guard.close())
    base = made.config.routes["*"].model_copy(update={"primary": "third", "local": ()})
    rest = tuple(one for one in made.config.endpoints if one.name != "old")
    made.config = made.config.model_copy(update={"endpoints": rest, "routes": {"*": base}})
    made.open()
    for _ in range(30):
        assert (await made.call()).rung in ("primary", "escalated")
    assert active(made) == "new"
