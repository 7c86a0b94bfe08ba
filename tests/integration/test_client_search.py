"""Searches through the client, the retrievers of LangChain and LlamaIndex, and calls of models: on a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import jsonschema
import pytest

from pipeline.client import AsyncClient, BadRequest, Client, ContextInfo, Found, Unavailable
from pipeline.client.langchain import KeyRetriever as LangChainKeys
from pipeline.client.langchain import SearchRetriever as LangChainSearch
from pipeline.client.llamaindex import KeyRetriever as LlamaIndexKeys
from pipeline.client.llamaindex import SearchRetriever as LlamaIndexSearch
from pipeline.client.tools import K_MAX, NAME_CHARACTERS_MAX, tool_name, tool_schemas
from tests.integration.test_search_commands import TEMPLATE, World, serving, typed, world  # noqa: F401
from tests.support.eventually import eventually

pytestmark = [pytest.mark.servers, pytest.mark.timeout(150)]

READ = "{{ tail }}: {{ model }} of {{ maker }}"
QUESTION = "wide body jet"
PATIENT_MS = 10_000.0


class Fleet(NamedTuple):
    """Three planes that can be searched, and both clients of their server."""

    world: World
    url: str
    asynchronous: AsyncClient
    blocking: Client

    @property
    def name(self) -> str:
        return self.world.name


@pytest.fixture
async def fleet(world: World) -> AsyncIterator[Fleet]:  # noqa: F811
    async with world.embedded(TEMPLATE), serving(world) as asking:
        url = str(asking.base_url)
        async with AsyncClient(url) as client:
            await eventually(
                lambda: client.search(world.name, QUESTION),
                lambda seen: seen.degraded is None and len(seen.hits) == 3,
                ignore=(Exception,),
            )
            blocking = Client(url)
            yield Fleet(world, url, client, blocking)
            await asyncio.to_thread(blocking.close)


async def test_search(fleet: Fleet) -> None:
    client, name = fleet.asynchronous, fleet.name
    found = await client.search(name, QUESTION, k=2, budget_ms=5_000)
    assert isinstance(found, Found) and [hit.key for hit in found.hits] == ["N1", "N2"] and found.mode == "hybrid"
    best = found.hits[0]
    assert best.bundle.data["maker"] == "Boeing" and best.cosine is not None and not best.moved_on
    assert best.bundle.hash == (await client.get(name, "N1", budget_ms=PATIENT_MS)).hash
    again = await asyncio.to_thread(fleet.blocking.search, name, QUESTION, k=2, budget_ms=PATIENT_MS)
    assert [hit.key for hit in again.hits] == ["N1", "N2"]
    alike = await client.search(name, key="N1", filter={"year": {"lt": 1980}}, bundles=False, budget_ms=PATIENT_MS)
    assert [hit.key for hit in alike.hits] == ["N3"] and alike.hits[0].bundle.raw is None
    (info,) = await client.contexts()
    assert info.space == found.space
    async with AsyncClient.direct(config=str(fleet.world.folder / "ctxpipe.yaml")) as direct:
        assert await direct.contexts() == [info]
        alone = await eventually(
            lambda: direct.get(name, "N1", budget_ms=PATIENT_MS), lambda seen: seen.fresh, ignore=(Unavailable,)
        )
        assert alone.embedding is not None and alone.embedding == best.bundle.embedding
        assert alone.embedding.space == info.space and alone.embedding.state == "current"
    with pytest.raises(BadRequest) as refused:
        await client.search(name, "", k=0, min_score=7)
    assert len(refused.value.mistakes) == 3
    with pytest.raises(BadRequest, match="no bundle 'N9'"):
        await client.search(name, key="N9")


@pytest.mark.parametrize("with_async_client", [False, True])
async def test_langchain(fleet: Fleet, with_async_client: bool) -> None:
    given: dict[str, Any] = {"client": fleet.blocking, "context": fleet.name, "template": READ, "budget_ms": PATIENT_MS}
    if with_async_client:
        given["async_client"] = fleet.asynchronous
    search, keys = LangChainSearch(**given, k=2), LangChainKeys(**given)
    for documents in (await asyncio.to_thread(search.invoke, QUESTION), await search.ainvoke(QUESTION)):
        assert [one.page_content for one in documents] == [
            "N1: wide body jet of Boeing",
            "N2: narrow body jet of Airbus",
        ]
        told = documents[0].metadata
        assert (told["key"], told["status"], told["context"]) == ("N1", "fresh", fleet.name)
        assert told["score"] > documents[1].metadata["score"] and told["as_of"]["fleet"] and told["hash"]
        json.dumps(told)
    for documents in (await asyncio.to_thread(keys.invoke, "N3\nN9\n\nN1"), await keys.ainvoke("N3\nN9\n\nN1")):
        assert [one.id for one in documents] == [f"{fleet.name}/N3", f"{fleet.name}/N1"]
        assert "score" not in documents[0].metadata
    narrowed = LangChainSearch(**{**given, "template": None}, filter={"maker": "Cessna"})
    (only,) = await narrowed.ainvoke(QUESTION)
    assert json.loads(only.page_content)["tail"] == "N3"


@pytest.mark.parametrize("with_async_client", [False, True])
async def test_llamaindex(fleet: Fleet, with_async_client: bool) -> None:
    other = fleet.asynchronous if with_async_client else None
    search = LlamaIndexSearch(fleet.blocking, fleet.name, async_client=other, k=2, template=READ, budget_ms=PATIENT_MS)
    keys = LlamaIndexKeys(fleet.blocking, fleet.name, async_client=other, budget_ms=PATIENT_MS)
    for nodes in (await asyncio.to_thread(search.retrieve, QUESTION), await search.aretrieve(QUESTION)):
        assert [one.node.get_content() for one in nodes] == [
            "N1: wide body jet of Boeing",
            "N2: narrow body jet of Airbus",
        ]
        assert nodes[0].score > nodes[1].score
        assert nodes[0].node.metadata["status"] == "fresh" and nodes[0].node.node_id == f"{fleet.name}/N1"
    for nodes in (await asyncio.to_thread(keys.retrieve, "N3\nN9"), await keys.aretrieve("N3\nN9")):
        (only,) = nodes
        assert json.loads(only.node.get_content())["model"] == "propeller plane" and only.score is None


async def test_calls_of_models(fleet: Fleet) -> None:
    client, name = fleet.asynchronous, fleet.name
    tools = {one["function"]["name"]: one["function"] for one in await client.tools()}
    get, search = tool_name("get_context_bundle", name), tool_name("search_context", name)
    assert set(tools) == {get, search}
    good = {"key": "N1", "max_age_ms": None, "token_budget": None, "sections": None}
    jsonschema.validate(good, tools[get]["parameters"])
    answer = json.loads(await client.call_tool(get, json.dumps(good), budget_ms=PATIENT_MS))
    assert answer["status"] == "fresh" and answer["bundle"]["maker"] == "Boeing" and answer["age_ms"] == 0
    missing = json.loads(await client.call_tool(get, json.dumps({**good, "key": "N9"}), budget_ms=PATIENT_MS))
    assert (missing["status"], missing["bundle"]) == ("missing", None)
    asked = {"text": QUESTION, "k": 2, "filter": '{"year": {"lt": 1980}}'}
    jsonschema.validate(asked, tools[search]["parameters"])
    told = await asyncio.to_thread(fleet.blocking.call_tool, search, json.dumps(asked), budget_ms=PATIENT_MS)
    found = json.loads(told)
    assert [(hit["key"], hit["bundle"]["year"]) for hit in found["hits"]] == [("N3", 1975)]


MALFORMED = [
    ("", "the arguments are no JSON"),
    ("{", "the arguments are no JSON"),
    ("[]", "a JSON object"),
    ("null", "a JSON object"),
    ("[" * 100_000, "the arguments are no JSON"),
    ("x" * 200_000, "at most 100,000 characters"),
    ('{"key": "\ud800"}', "missing"),
    ("{}", "key is missing"),
    ('{"key": 7}', "key is a text"),
    ('{"key": null}', "key is a text"),
    ('{"key": "N1", "max_age_ms": "soon"}', "max_age_ms is a number or null"),
    ('{"key": "N1", "token_budget": 1.5, "sections": [7], "colour": 1}', "'colour' is no argument"),
    ('{"key": "N1", "token_budget": true}', "token_budget is a whole number or null"),
    ('{"key": "N1", "token_budget": 0, "max_age_ms": -1}', "token_budget is 1 to"),
    ('{"key": "a|b"}', "has 1 part"),
    ('{"key": ""}', "not empty"),
    ('{"key": "N1", "sections": ["wings"]}', "has no section 'wings'"),
]
MALFORMED_SEARCHES = [
    ('{"text": "", "k": 1, "filter": null}', "text is empty"),
    ('{"text": "jet", "k": 0, "filter": null}', "k is 1 to 20"),
    ('{"text": "jet", "k": 1000000, "filter": null}', "k is 1 to 20"),
    ('{"text": "jet", "k": 5, "filter": "year<3"}', "filter is no JSON"),
    ('{"text": "jet", "k": 5, "filter": "[]"}', "filter is a JSON object"),
    ('{"text": "jet", "k": 5, "filter": "{\\"seats\\": 7}"}', "marks no field 'seats'"),
    ('{"text": "jet", "filter": null}', "k is missing"),
]


async def test_a_model_is_told_what_is_wrong_with_its_call(fleet: Fleet) -> None:
    client = fleet.asynchronous
    calls = [(tool_name("get_context_bundle", fleet.name), *one) for one in MALFORMED]
    calls += [(tool_name("search_context", fleet.name), *one) for one in MALFORMED_SEARCHES]
    calls += [("get_context_bundle_nothing", "{}", "no function"), ("", "{}", "no function")]
    for name, arguments, told in calls:
        answer = json.loads(await client.call_tool(name, arguments, budget_ms=PATIENT_MS))
        if told == "missing":  # half of a character becomes a question mark, which is no plane
            assert "mistakes" in answer or answer["status"] == "missing"
            continue
        assert any(told in mistake for mistake in answer["mistakes"]), (arguments[:80], answer)
    odd: Any = None
    assert "error" in json.loads(await client.call_tool(tool_name("search_context", fleet.name), odd))
    async with AsyncClient("http://127.0.0.1:1") as nobody:
        away = json.loads(await nobody.call_tool("get_context_bundle_flight", "{}"))
        assert "no answer now" in away["error"]


async def test_the_command_prints_strict_schemas(fleet: Fleet) -> None:
    for words in (("--url", fleet.url), ()):
        done = await typed(fleet.world, "tools", "--json", *words)
        assert done.code == 0, done.err
        (tools,) = done.lines()
        assert len(tools) == 2
        for tool in tools:
            strict(tool)
        shown = await typed(fleet.world, "tools", *words)
        assert shown.code == 0 and f"get_context_bundle_{fleet.name}: " in shown.out
    away = await typed(fleet.world, "tools", "--url", "http://127.0.0.1:1")
    assert away.code == 3 and "does not answer" in away.err


def strict(tool: dict[str, Any]) -> None:
    """As providers check it."""
    assert set(tool) == {"type", "function"} and tool["type"] == "function"
    function = tool["function"]
    assert set(function) == {"name", "description", "strict", "parameters"} and function["strict"] is True
    parameters = function["parameters"]
    jsonschema.Draft202012Validator.check_schema(parameters)
    assert parameters["additionalProperties"] is False
    assert sorted(parameters["required"]) == sorted(parameters["properties"])
    for schema in parameters["properties"].values():
        assert "default" not in schema and schema["description"]


def test_names_fit_and_differ() -> None:
    long = [ContextInfo("c" * 59 + end, 1, "", ("a", "b"), 1, 1, "space") for end in "xy"]
    tools = tool_schemas([*long, ContextInfo("seat", 1, "A seat.", ("flight", "seat"), 1, 1)])
    names = [tool["function"]["name"] for tool in tools]
    assert len(set(names)) == 5 and all(len(name) <= NAME_CHARACTERS_MAX for name in names)
    for tool in tools:
        strict(tool)
    seat = tools[-1]["function"]
    assert seat["name"] == "get_context_bundle_seat" and "A seat." in seat["description"]
    assert "flight|seat" in seat["parameters"]["properties"]["key"]["description"]
    assert str(K_MAX) in tools[1]["function"]["parameters"]["properties"]["k"]["description"]
