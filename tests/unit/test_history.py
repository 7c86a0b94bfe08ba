"""What a model saw: every id of every answer leads back to its bytes, whatever came after, for who may see them."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import msgspec
import pytest

from pipeline.bundle import empty_bytes
from pipeline.lookup.answer import Answer, hash_of
from pipeline.lookup.bundle_ids import BadId, id_of, read_id, text_of
from pipeline.lookup.history import History, NotComplete, NotKept
from pipeline.lookup.options import LookupOptions
from pipeline.lookup.principal import BUNDLES, Principal
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import LookupService
from pipeline.plan import compile_plan
from pipeline.stores.memory import MemoryBundles, MemoryRelations, MemoryRows
from pipeline.stores.store import Fetched
from pipeline.streams.token_counting import token_counting
from pipeline.text import count_tokens
from schemas.bundle import UnitKey
from schemas.context import ContextSpec
from tests.unit.test_flow import SPEC, World
from tests.unit.test_lookup import FixedClock

NARROW = Principal("narrow", fields={"order": ("id", "customer.name", "sums")})
OPTIONS = [
    LookupOptions(),
    LookupOptions(sections=("items",)),
    LookupOptions(fields=("id", "items.line", "customer")),
    LookupOptions(token_budget=60),
    LookupOptions(token_budget=1, sections=("sums", "customer")),
    LookupOptions(principal=NARROW),
    LookupOptions(principal=NARROW, fields=("id", "customer.name", "amount"), token_budget=20),
]


class Past(World):
    """A world whose bundles are kept, and the lookups on it."""

    def __init__(self, **spec: Any) -> None:
        super().__init__()
        made = {**SPEC, "history": {"retention_s": 60}, "serving": {"budget_ms": 60_000}, **spec}
        self.spec = ContextSpec.model_validate(made)
        counting = token_counting(self.spec, None)  # type: ignore[arg-type] # words need nothing of a configuration
        self.plan = compile_plan(self.spec, mask_secret=b"s3cret", count=counting.count)
        self.bundles = MemoryBundles(keeps_history=True)
        self.flow = type(self.flow)(self.plan, MemoryRows(), MemoryRelations(), self.bundles)
        empty = {node.path: empty_bytes(node) for node in self.plan.nodes if node.path}
        self.served = ServedContext(self.spec, self.bundles, empty)
        self.lookups = LookupService({"order": self.served}, FixedClock())
        self.history = History(self.lookups)

    async def asked(self, key: str, options: LookupOptions = OPTIONS[0]) -> tuple[Answer, str | None]:
        answer = await self.lookups.get("order", key, options)
        fetched = (await self.bundles.fetch([key]))[0]
        assert answer.id == id_of(key, fetched, options, answer)
        return answer, answer.id

    def changed(self, random: Random) -> Any:
        number = random.randint(1, 3)
        return random.choice(
            [
                lambda: self.order(number, total=f"{random.randint(1, 999)}.50"),
                lambda: self.customer(random.choice(["Ann", "Bob", "Zoë"])),
                lambda: self.item(number, random.randint(1, 4), random.randint(1, 9)),
                lambda: self.record("orders", "d", {"id": number}, None),
                lambda: self.record("customers", "d", {"id": 7}, None),
            ]
        )()


@pytest.mark.parametrize("tokenizer", [None, "words"])
async def test_every_answer_is_found_again_whatever_came_after(tokenizer: str | None) -> None:
    world, random = Past(text={"template": "{{ id }}", "tokenizer": tokenizer}), Random(17)
    seen: list[tuple[Answer, str, LookupOptions]] = []
    for _ in range(120):
        await world.flow.process([world.changed(random) for _ in range(random.randint(1, 3))])
        for options in random.sample(OPTIONS, 2):
            answer, text = await world.asked(str(random.randint(1, 3)), options)
            assert (text is None) == (answer.bundle is None)
            if text is not None:
                seen.append((answer, text, options))
    assert len(seen) > 100
    for answer, text, options in seen:
        past = (await world.history.find("order", text, options.principal)).past
        assert (past.bundle, past.hash, past.tokens) == (answer.bundle, answer.hash, answer.tokens)
        assert (past.key, past.id, set(past.left_out)) == (answer.key, text, set(answer.left_out))
        told = json.loads(past.to_json())
        assert told["bundle"] == json.loads(answer.bundle or b"null") and told["sources"]["shop"]["lsn"].startswith(
            "0/"
        )


async def test_token_counts_that_are_stored_say_what_counting_says() -> None:
    world, random = Past(text={"template": "{{ id }}", "tokenizer": "words"}), Random(3)
    for _ in range(60):
        await world.flow.process([world.changed(random) for _ in range(2)])
        for budget in (1, 15, 40, 80, 1000):
            options = LookupOptions(token_budget=budget)
            _, text = await world.asked("1", options)
            if text is not None:
                past = (await world.history.find("order", text)).past
                assert past.tokens == count_tokens(past.bundle.decode())
                assert past.tokens <= budget or set(json.loads(past.bundle)) == {"id", "amount", "large", "note"}


async def test_what_is_gone_is_no_longer_complete_and_then_no_longer_kept() -> None:
    world = Past()
    await world.flow.process([world.order(1), world.customer("Ann")])
    _, text = await world.asked("1")
    assert text is not None
    await world.flow.process([world.order(1, total="1"), world.customer("Bob")])
    customer = [place for place in world.bundles.former if place[0].unit == "customer"]
    for place in customer:
        del world.bundles.former[place]
    with pytest.raises(NotComplete, match="no longer complete: customer"):
        await world.history.find("order", text)
    world.bundles.former.clear()
    with pytest.raises(NotKept, match=r"no bundle of order is kept under this id \(any more\)"):
        await world.history.find("order", text)


async def test_late_sections_are_left_out_as_they_were() -> None:
    world = Past()
    await world.flow.process([world.order(1), world.customer("Ann")])
    fetched = (await world.bundles.fetch(["1"]))[0]
    late = Fetched(fetched.bundle, {}, frozenset({("customer", "7")}))
    bundle = json.loads((await world.asked("1"))[0].bundle or b"")
    del bundle["customer"]
    answer = msgspec.structs.replace((await world.asked("1"))[0], bundle=msgspec.json.encode(bundle), status="partial")
    answer = msgspec.structs.replace(answer, hash=hash_of(answer.bundle or b""))
    text = id_of("1", late, LookupOptions(), answer)
    assert text is not None and read_id(text).fragments == (False,)
    past = (await world.history.find("order", text)).past
    assert past.bundle == answer.bundle and list(past.left_out) == ["customer"]


async def test_an_id_whose_bytes_cannot_be_made_again_says_so() -> None:
    world = Past()
    await world.flow.process([world.order(1), world.customer("Ann")])
    _, text = await world.asked("1")
    assert text is not None
    other = msgspec.structs.replace(read_id(text), digest=b"12345678")
    with pytest.raises(NotComplete, match="does not give the same bytes any more"):
        await world.history.find("order", text_of(other))


async def test_another_tenants_id_is_answered_like_one_that_never_was() -> None:
    world = Past(tenant="customer_id")
    await world.flow.process([world.order(1, customer_id=7), world.order(2, customer_id=8)])
    _, mine = await world.asked("1")
    _, theirs = await world.asked("2")
    assert mine is not None and theirs is not None
    caller = Principal("p", tenant="7", scopes=frozenset({BUNDLES}))
    assert (await world.history.find("order", mine, caller)).past.key == "1"
    await world.flow.process([world.order(1, customer_id=9)])
    assert (await world.history.find("order", mine, caller)).past.key == "1", "it was theirs then"
    never = text_of(msgspec.structs.replace(read_id(theirs), counter=99, fragments=()))
    told = []
    for text in (theirs, never):
        with pytest.raises(NotKept) as refused:
            await world.history.find("order", text, caller)
        told.append((type(refused.value), str(refused.value)))
    assert told[0] == told[1]


async def test_who_sees_fewer_fields_sees_fewer_of_the_past_too() -> None:
    world = Past()
    await world.flow.process([world.order(1), world.customer("Ann")])
    answer, text = await world.asked("1")
    assert text is not None
    past = (await world.history.find("order", text, NARROW)).past
    assert json.loads(past.bundle) == {
        "id": 1,
        "customer": {"name": "Ann"},
        "sums": json.loads(answer.bundle or b"")["sums"],
    }
    assert past.left_out["items"] == "not allowed" and past.hash != answer.hash


async def test_without_history_there_is_nothing_and_no_id_is_a_mistake() -> None:
    world = Past()
    await world.flow.process([world.order(1)])
    _, text = await world.asked("1")
    assert text is not None
    world.lookups.use("order", ServedContext(ContextSpec.model_validate(SPEC), world.bundles, world.served.empty))
    with pytest.raises(NotKept):
        await world.history.find("order", text)
    with pytest.raises(BadId):
        await world.history.find("order", "nonsense!")


async def test_an_id_of_another_version_is_found_where_that_can_be_opened() -> None:
    old, new = Past(), Past(version=4)
    await old.flow.process([old.order(1)])
    answer, text = await old.asked("1")
    assert text is not None
    closed = []

    class Opened:
        served = old.served

        async def serving(self) -> int | None:
            return 4

        async def close(self) -> None:
            closed.append(1)

    async def open_version(context: str, version: int) -> Opened:
        assert (context, version) == ("order", 3)
        return Opened()

    with pytest.raises(NotKept):
        await new.history.find("order", text)
    found = await History(new.lookups, open_version).find("order", text)
    assert found.past.bundle == answer.bundle and closed == [1]


async def test_replayed_and_late_puts_leave_history_alone() -> None:
    world = Past()
    await world.flow.process([world.order(1)])
    await world.flow.process([world.order(1, total="3")])
    key = UnitKey("", "1")
    present, former = world.bundles.values[key], dict(world.bundles.former)
    assert await world.bundles.put([(key, present)]) == [False]
    assert await world.bundles.put([(key, msgspec.structs.replace(present, counter=1, body=b"{}"))]) == [False]
    assert world.bundles.former == former and len(former) == 1
