"""Bundles for models that ask by the Model Context Protocol: as tools, and as resources that say how long they hold.

The content of an answer is what a model reads, the context's text where the spec has one; the structured content is the
answer as HTTP gives it, labels included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from contextvars import ContextVar
from typing import Any
from urllib.parse import quote, unquote

import msgspec
from mcp.server.context import CallNext, ServerRequestContext
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ToolError
from mcp_types import CallToolResult, ReadResourceResult, TextContent, ToolAnnotations

from pipeline.core.canary import is_canary
from pipeline.core.errors import CtxpipeError, Poison
from pipeline.lookup.answer import Answer
from pipeline.lookup.audit import Access
from pipeline.lookup.guarding import Guard, refuse_without_scope
from pipeline.lookup.mcp_access import Asker
from pipeline.lookup.options import NO_OPTIONS, LookupOptions
from pipeline.lookup.principal import BUNDLES, SEARCH
from pipeline.lookup.search import SearchService
from pipeline.lookup.search_answer import SearchAnswer
from pipeline.lookup.search_request import SearchRequest, read_request
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import LookupService
from pipeline.text import decode_bundle, render_text

INSTRUCTIONS = (
    "Context bundles that are kept up to date from databases. Each answer says how old it may be: quote that when it "
    "matters, and treat `stale` and `fallback` with care."
)
ITEMS_MAX = 10
_READS = ToolAnnotations(read_only_hint=True, idempotent_hint=True, destructive_hint=False, open_world_hint=False)
_HOLDS_MS: ContextVar[list[int] | None] = ContextVar("ctxpipe_resource_holds_ms", default=None)
"""Of the resource that this request reads: a list to be filled, because the reading runs in a context of its own."""


def make_server(
    service: LookupService,
    searches: SearchService,
    version: str,
    lifespan: Callable[[Any], AbstractAsyncContextManager[Any]] | None = None,
    guard: Guard | None = None,
    counters: Mapping[str, Callable[[str], int]] | None = None,
) -> MCPServer:
    """Tools get_context_bundle, search_context and list_contexts, search and fetch under the names that connectors of
    chats expect, and the resources ctxpipe://{context}/{key}. With a `guard` that is active only messages are answered
    that came through mcp_access.GuardedTransport, each as far as its credential goes. `counters`: by context, what
    counts the tokens of its texts; words and signs without one."""
    answering = _Answering(service, searches, Asker(guard or Guard()), counters or {})
    server: MCPServer = MCPServer(
        "ctxpipe", version=version, instructions=INSTRUCTIONS, lifespan=lifespan, middleware=[_with_time_to_live]
    )
    for handler, title in (
        (answering.get_context_bundle, "Context bundle by key"),
        (answering.search_context, "Context bundles by meaning"),
        (answering.list_contexts, "Contexts"),
        (answering.search, "Search all contexts"),
        (answering.fetch, "Fetch a search result"),
    ):
        server.tool(title=title, annotations=_READS)(handler)
    server.resource("ctxpipe://{context}/{key}", title="Context bundle", mime_type="application/json")(
        answering.read_bundle
    )
    return server


class _Answering:
    """What the tools do; their docstrings are what a model reads of them."""

    def __init__(
        self,
        service: LookupService,
        searches: SearchService,
        asker: Asker,
        counters: Mapping[str, Callable[[str], int]],
    ) -> None:
        self._service, self._searches, self._asker, self._counters = service, searches, asker, counters

    async def get_context_bundle(
        self,
        context: str,
        key: str,
        max_age_ms: float | None = None,
        token_budget: int | None = None,
        sections: list[str] | None = None,
    ) -> CallToolResult:
        """The context bundle with this key, e.g. everything known of one customer. `token_budget` cuts it to what fits;
        `sections` names the parts that are wanted."""
        options = LookupOptions(
            max_age_ms=max_age_ms,
            token_budget=token_budget,
            sections=None if sections is None else tuple(sections),
        )
        answer = await _told(self._get(context, key, options))
        return _result(self._read(answer), msgspec.json.decode(answer.to_json()))

    async def search_context(
        self, context: str, text: str, k: int = 5, filter: dict[str, Any] | None = None
    ) -> CallToolResult:
        """The bundles of one context that come nearest to a question in plain words. `filter` narrows by fields, e.g.
        {"year": {"lt": 1990}}."""
        asked: dict[str, Any] = {"text": text, "k": k, **({"filter": filter} if filter else {})}
        found = await _told(self._search(context, read_request(msgspec.json.encode(asked))))
        parts = [f"{hit.key}: {self._read(hit.answer)}" for hit in found.hits]
        return _result("\n\n".join(parts) or "nothing was found", msgspec.json.decode(found.to_json()))

    async def list_contexts(self) -> CallToolResult:
        """Which contexts there are, what their keys are made of, and whether they can be searched."""
        principal = self._asker.principal()
        listed: list[dict[str, Any]] = [
            {
                "context": served.spec.context,
                "description": served.spec.description,
                "key": served.spec.entities[served.spec.root].key,
                "sections": list(served.spec.sections),
                "searchable": served.embeds,
            }
            for served in self._offered()
            if principal is None or principal.knows(served.spec.context)
        ]
        lines = [
            f"{one['context']} by {'|'.join(one['key'])}: {one['description'] or ''}".rstrip(": ") for one in listed
        ]
        return _result("\n".join(lines) or "no contexts are served", {"contexts": listed})

    async def search(self, query: str) -> CallToolResult:
        """Searches every context for a question in plain words; `fetch` gives the whole of a result by its id."""
        results: list[dict[str, Any]] = []
        principal = self._asker.principal()
        for served in self._offered():
            name = served.spec.context
            if not served.embeds or not (principal is None or principal.may(SEARCH, name)):
                continue
            found = await _told(self._search(name, SearchRequest(text=query, k=ITEMS_MAX)))
            for hit in found.hits:
                shown = "" if hit.passage is None else hit.passage.text or ""
                results.append(
                    {"id": f"{name}/{hit.key}", "title": f"{name} {hit.key}", "text": shown, "url": _uri(name, hit.key)}
                )
        return _result(msgspec.json.encode({"results": results}).decode(), {"results": results})

    def _offered(self) -> list[ServedContext]:
        """Without the canaries, which tell a model nothing."""
        versions = self._service.versions
        return [served for served in versions if not is_canary(served.spec.context, served.spec.description)]

    async def fetch(self, id: str) -> CallToolResult:
        """The whole of one search result, by its id."""
        context, separator, key = id.partition("/")
        if not separator:
            raise ToolError("an id is CONTEXT/KEY, as search gives it")
        answer = await _told(self._get(context, key))
        document = {
            "id": id,
            "title": f"{context} {key}",
            "text": self._read(answer),
            "url": _uri(context, key),
            "metadata": {"status": answer.status, "age_ms": answer.age_ms},
        }
        return _result(msgspec.json.encode(document).decode(), document)

    async def read_bundle(self, context: str, key: str) -> str:
        """The bundle and its labels, as HTTP answers them."""
        try:
            answer = await self._get(unquote(context), unquote(key))
        except CtxpipeError as error:
            raise ResourceError(str(error)) from error
        held = _HOLDS_MS.get()
        if held is not None:
            held.append(self._holds_ms(answer))
        return answer.to_json().decode()

    async def _get(self, context: str, key: str, options: LookupOptions = NO_OPTIONS) -> Answer:
        with self._accessing(BUNDLES, context, key) as access:
            options = msgspec.structs.replace(options, principal=access.principal)
            answer = await self._service.get(context, key, options)
            access.answered = answer.status
            return answer

    async def _search(self, context: str, request: SearchRequest) -> SearchAnswer:
        with self._accessing(SEARCH, context) as access:
            return await self._searches.search(context, request, access.principal)

    @contextmanager
    def _accessing(self, action: str, context: str, *keys: str) -> Iterator[Access]:
        """Raises NotAllowed; what was asked for, and how it ended, goes to the audit."""
        access = self._asker.access(action, context, keys)
        try:
            refuse_without_scope(access.principal, action, context)
            yield access
        except Exception as error:
            self._asker.note(access, error)
            raise
        self._asker.note(access)

    def _read(self, answer: Answer) -> str:
        """For a model: the text of the spec, else the JSON; with the age in front where it is not fresh."""
        if answer.bundle is None:
            return f"there is no bundle {answer.key} in {answer.context}"
        spec = self._service.served(answer.context).spec
        text = answer.bundle.decode()
        if spec.text is not None and answer.status != "fallback" and not answer.left_out:
            with suppress(Poison):  # the bundle itself tells it all, if less readably
                text = render_text(spec, decode_bundle(answer.bundle), self._counters.get(answer.context)).text
        return text if answer.status == "fresh" else f"[{answer.status}] {text}"

    def _holds_ms(self, answer: Answer) -> int:
        """How long it stays fresh by its ages of now; 0 where it is not."""
        ages = list(answer.age_ms.values())
        if answer.status != "fresh" or None in ages:
            return 0
        limit_ms = self._service.served(answer.context).spec.serving.max_age_ms
        return max(0, round(limit_ms - max((age for age in ages if age is not None), default=0)))


async def _with_time_to_live(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> Any:
    Asker.asks(ctx.request)
    held: list[int] = []
    token = _HOLDS_MS.set(held)
    try:
        result = await call_next(ctx)
    finally:
        _HOLDS_MS.reset(token)
    if held and isinstance(result, ReadResourceResult):
        return result.model_copy(update={"ttl_ms": held[0], "cache_scope": "private"})
    if held and isinstance(result, dict):
        return {**result, "ttlMs": held[0], "cacheScope": "private"}
    return result


async def _told(asking: Any) -> Any:
    """Our errors as text for a model."""
    try:
        return await asking
    except CtxpipeError as error:
        raise ToolError(str(error)) from error


def _result(text: str, structured: dict[str, Any]) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=structured)


def _uri(context: str, key: str) -> str:
    return f"ctxpipe://{quote(context, safe='')}/{quote(key, safe='')}"
