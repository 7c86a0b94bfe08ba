"""Which bundles' texts are looked at after a change: bundles that were written, and those that show a changed link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pipeline.composition import adopted, traced_links
from pipeline.core.errors import ConfigError
from pipeline.flow import Flow, FlowLimits
from pipeline.plan import compile_plan
from pipeline.report import BatchReport
from pipeline.stores.memory import MemoryRelations, MemoryRows
from pipeline.streams.asking import ask_for_texts
from pipeline.streams.compose import refuse_untraced
from schemas.bundle import TEXT_UNIT, UnitKey
from schemas.context import ContextSpec
from tests.unit.test_flow import SPEC, World


def embedding_spec(template: str, **sections: Any) -> ContextSpec:
    embedding = {"engine": "hash", "template": template}
    return ContextSpec.model_validate({**SPEC, "sections": {**SPEC["sections"], **sections}, "embedding": embedding})


class Embedding(World):
    """The orders of test_flow, with the customer linked, and a text."""

    def __init__(self, template: str = "{{ note }} of {{ customer.name }}", limits: FlowLimits | None = None) -> None:
        super().__init__(limits)
        spec = embedding_spec(template)
        self.plan = compile_plan(spec, adopted(spec, {}), b"s3cret", traced=traced_links(spec, adopted(spec, {})))
        self.flow = Flow(self.plan, MemoryRows(), MemoryRelations(), self.bundles, limits, embeds=True)


async def test_every_bundle_that_was_written_is_looked_at() -> None:
    world = Embedding()
    report = await world.flow.process([world.order(1), world.order(2), world.item(3, 1, 5)])
    assert list(report.texts_wanted) == ["1", "2", "3"]
    report = await world.flow.process([world.record("orders", "d", {"id": 1}, None)])
    assert list(report.texts_wanted) == ["1"], "also when it was deleted"


async def test_a_linked_sections_change_is_followed_up_to_its_bundles() -> None:
    world = Embedding()
    await world.flow.process([world.customer("Ann"), *[world.order(number) for number in range(5)]])
    await world.flow.process([world.order(9, customer_id=8)])
    report = await world.flow.process([world.customer("Bob")])
    assert (report.bundles_written, report.fragments_written) == (0, 1)
    assert sorted(report.texts_wanted) == ["0", "1", "2", "3", "4"]


async def test_a_link_that_the_text_does_not_show_is_not_followed() -> None:
    world = Embedding("{{ note }}")
    await world.flow.process([world.customer("Ann"), world.order(1)])
    assert not (await world.flow.process([world.customer("Bob")])).texts_wanted


async def test_a_context_that_embeds_nothing_asks_for_nothing() -> None:
    world = World()
    assert not (await world.flow.process([world.order(1), world.customer("Ann")])).texts_wanted


async def test_a_hot_parents_texts_go_through_the_dirty_lane() -> None:
    world = Embedding(limits=FlowLimits(parent_children_max=10, chunk_keys=7))
    await world.flow.process([world.order(number) for number in range(20)])
    report = await world.flow.process([world.customer("Ann")])
    keys = [key for chunk in report.fan_out for key in chunk]
    assert {key.unit for key in keys} == {TEXT_UNIT} and not report.texts_wanted
    assert sorted(key.key for key in keys) == sorted(map(str, range(20)))
    wanted: set[str] = set()
    for chunk in report.fan_out:
        rebuilt = await world.flow.rebuild(chunk)
        wanted |= set(rebuilt.texts_wanted)
        assert rebuilt.bundles_written == 0, "the bundles stay as they are"
    assert wanted == set(map(str, range(20)))
    both = await world.flow.rebuild([UnitKey("", "3"), UnitKey(TEXT_UNIT, "4")])
    assert (list(both.texts_wanted), both.bundles_written) == (["3", "4"], 1)


def test_a_template_that_looks_at_a_link_without_a_way_back_is_refused() -> None:
    spec = embedding_spec("{{ customer.name }}")
    refuse_untraced(spec, {"customer": "link"}, ["customer"])
    refuse_untraced(spec, {"customer": "copy"}, [])
    refuse_untraced(embedding_spec("{{ note }}"), {"customer": "link"}, [])
    with pytest.raises(ConfigError) as refused:
        refuse_untraced(spec, {"customer": "link"}, [])
    (mistake,) = refused.value.mistakes
    assert "the linked section customer, from which version 3 keeps no way back" in mistake
    assert "Write a new version" in mistake


class Asking:
    """What ask_for_texts needs of an app and of its texts."""

    def __init__(self, asked_before: bool = False, chunks: int = 2) -> None:
        self.should_stop = False
        self.publisher: Any = self
        self.opened: Any = self
        self.texts: Any = self
        self.requested: list[str] = []
        self.remembered = 0
        self._asked_before, self._chunks = asked_before, chunks
        self.stop_after: int | None = None

    async def asked(self) -> bool:
        return self._asked_before

    async def keys(self) -> AsyncIterator[list[str]]:
        for number in range(self._chunks):
            yield [f"{number}a", f"{number}b"]

    async def remember(self) -> None:
        self.remembered += 1

    async def request_texts(self, keys: list[str]) -> None:
        self.requested += keys
        self.should_stop = self.stop_after is not None and len(self.requested) >= self.stop_after

    async def until_it_works(self, work: Any) -> Any:
        return await work()

    async def sleep(self, _: float) -> None:
        await asyncio.sleep(0)


async def test_bundles_that_were_there_before_are_asked_for_once_per_version() -> None:
    app = Asking()
    await ask_for_texts(app)
    assert app.requested == ["0a", "0b", "1a", "1b"] and app.remembered == 1
    again = Asking(asked_before=True)
    await ask_for_texts(again)
    assert (again.requested, again.remembered) == ([], 0)


async def test_a_worker_that_stops_meanwhile_has_not_asked() -> None:
    app = Asking(chunks=5)
    app.stop_after = 4
    await ask_for_texts(app)
    assert len(app.requested) == 4 and app.remembered == 0, "the next one asks for all"


async def test_nothing_is_asked_before_there_is_a_way() -> None:
    app = Asking()
    app.publisher = None
    running = asyncio.create_task(ask_for_texts(app))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not running.done() and app.requested == []
    app.publisher = app
    await running
    assert app.remembered == 1
    app = Asking()
    app.texts = None
    await ask_for_texts(app)
    assert app.requested == []


def test_a_report_starts_with_no_wish() -> None:
    one, other = BatchReport(), BatchReport()
    one.texts_wanted["1"] = None
    assert other.texts_wanted == {}
