"""The engine `openai`: any endpoint that speaks OpenAI's /embeddings, by URL. It never tries again by itself."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline.core.config import EmbeddingConfig, EndpointConfig
from pipeline.core.errors import CtxpipeError, EnvironmentProblem, Fatal
from pipeline.embedding.endpoint_gate import EndpointGate, Refused, TimedOut, Unreachable, gate_of
from pipeline.embedding.engine import Embedded, EngineIdentity
from pipeline.embedding.openai_answer import error_of, read_answer
from pipeline.embedding.packages import require
from pipeline.embedding.vectors import prepare_texts, unit_vectors
from schemas.context import Embedding

if TYPE_CHECKING:
    import httpx
    import numpy

_TOKEN = re.compile(r"[A-Za-z_]{1,6}|\d{1,3}|\w|[^\w\s]")
"""About what tokenizers of such models make of a text, rather more than fewer: theirs are not at hand."""
_ANSWER_BYTES_PER_NUMBER = 40
_ANSWER_BYTES_SPARE = 1_000_000
_DIMENSION_MAX = 8192


class OpenAIEngine:
    """See Engine. `embed` makes as many requests as the endpoint's limits ask for, one after the other.

    Raises Throttled before anything is sent where the rate limit is used up, or the endpoint failed too often. Tokens
    are estimates; the cost is from what the provider counted, None where it or its price is unknown.
    """

    def __init__(
        self,
        embedding: Embedding,
        endpoint: EndpointConfig,
        client: httpx.Client,
        dimension: int,
        gate: EndpointGate | None = None,
    ) -> None:
        self.identity = EngineIdentity(
            engine="openai", model=embedding.model, revision=embedding.revision or "", dimension=dimension
        )
        self.texts_max = endpoint.request_texts_max
        self._prefixes = {False: embedding.document_prefix, True: embedding.query_prefix}
        self._whole_max = endpoint.tokens_max
        self.tokens_max = max(1, endpoint.tokens_max - max(len(_ends(prefix)) for prefix in self._prefixes.values()))
        self._gate = gate or gate_of(embedding.endpoint or "", endpoint)
        self._endpoint, self._calls = endpoint, _Calls(embedding, endpoint, client, self._gate)

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
        import numpy

        prefix = self._prefixes[query]
        cut = [_cut(text, self._whole_max) for text in prepare_texts(texts, prefix)]
        around = len(_ends(prefix))
        sizes = [min(count, self._whole_max) for _, count in cut]
        requests = list(_requests(sizes, self._endpoint))
        self._gate.take(len(requests), sum(sizes))
        vectors, paid = [], 0
        for first, last in requests:
            found, tokens = self._calls.call([text for text, _ in cut[first:last]], self.identity.dimension)
            vectors.append(found)
            paid = -1 if tokens is None or paid < 0 else paid + tokens
        price = self._endpoint.price_per_million_tokens
        dimension = self.identity.dimension
        whole = numpy.concatenate(vectors) if vectors else numpy.zeros((0, dimension), numpy.float32)
        return Embedded(
            unit_vectors(whole, len(texts), dimension, self._calls.who),
            [max(1, count - around) for _, count in cut],
            [max(0, count - self._whole_max) for _, count in cut],
            None if price is None or paid < 0 else paid * price / 1_000_000,
        )

    def token_ends(self, text: str) -> list[int]:
        return _ends(text)

    def close(self) -> None:
        self._calls.client.close()


def open_openai(embedding: Embedding, config: EmbeddingConfig) -> OpenAIEngine:
    """Asks the endpoint for one vector where the spec gives no dimension; that call alone needs it to be there.

    Raises EnvironmentProblem.
    """
    require("httpx")
    import httpx

    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs each request
    endpoint = config.endpoints[embedding.endpoint or ""]
    client = httpx.Client(timeout=endpoint.timeout_s, follow_redirects=False)
    if embedding.dimension is not None:
        return OpenAIEngine(embedding, endpoint, client, embedding.dimension)
    gate = gate_of(embedding.endpoint or "", endpoint)
    try:
        vectors, _ = _Calls(embedding, endpoint, client, gate).call(["dimension"], None)
    except CtxpipeError as error:
        client.close()
        raise EnvironmentProblem(
            f"embedding: the spec gives no dimension, and asking for it failed: {error}. Write the model's 'dimension' "
            "into the spec, or mend the endpoint"
        ) from error
    return OpenAIEngine(embedding, endpoint, client, vectors.shape[1])


class _Calls:
    """One request and its answer. The key is in no message."""

    def __init__(
        self,
        embedding: Embedding,
        endpoint: EndpointConfig,
        client: httpx.Client,
        gate: EndpointGate,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client, self._endpoint, self._gate, self._clock = client, endpoint, gate, clock
        self.who = f"endpoint {embedding.endpoint}"
        self._fields: dict[str, Any] = {"model": embedding.model, "encoding_format": endpoint.encoding}
        if endpoint.ask_dimension and embedding.dimension is not None:
            self._fields["dimensions"] = embedding.dimension
        self._url = endpoint.url.rstrip("/") + "/embeddings"
        self._key = None if endpoint.api_key is None else endpoint.api_key.get_secret_value()

    def call(
        self, texts: list[str], dimension: int | None
    ) -> tuple[numpy.ndarray[tuple[int, int], numpy.dtype[numpy.float32]], int | None]:
        """Raises Throttled, Retryable, Poison and Fatal. Through the endpoint's gate."""
        with self._gate.passing(self._fields["model"]) as counted:
            vectors, tokens = self._ask(texts, dimension)
            counted(tokens)
        return vectors, tokens

    def _ask(
        self, texts: list[str], dimension: int | None
    ) -> tuple[numpy.ndarray[tuple[int, int], numpy.dtype[numpy.float32]], int | None]:
        import httpx

        content = msgspec.json.encode({**self._fields, "input": texts})
        headers = {"content-type": "application/json"}
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        bytes_max = _ANSWER_BYTES_SPARE + len(texts) * (dimension or _DIMENSION_MAX) * _ANSWER_BYTES_PER_NUMBER
        try:
            with self.client.stream("POST", self._url, content=content, headers=headers) as response:
                body = self._body(response, bytes_max)
        except httpx.TimeoutException as error:
            raise TimedOut(f"{self.who} did not answer in {self._endpoint.timeout_s:g} s") from error
        except httpx.HTTPError as error:
            raise Unreachable(
                f"{self.who} can't be reached: {self._hidden(str(error)) or type(error).__name__}"
            ) from error
        except (RuntimeError, httpx.InvalidURL, UnicodeError) as error:  # closed; a key that is no header
            raise Refused(f"{self.who} can't be called: {self._hidden(str(error))}") from None
        if response.status_code != 200:
            found = error_of(response.status_code, response.headers, body, self.who, datetime.now(UTC))
            found.args = (self._hidden(str(found)),)
            raise found
        return read_answer(body, len(texts), dimension, self.who)

    def _body(self, response: httpx.Response, bytes_max: int) -> bytes:
        """The whole answer in `timeout_s`, however slowly it comes: httpx's own timeout begins anew with each byte."""
        latest = self._clock() + self._endpoint.timeout_s
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > bytes_max:
                raise Fatal(f"{self.who} gives an answer of more than {bytes_max} bytes")
            if self._clock() > latest:
                raise TimedOut(f"{self.who} did not finish its answer in {self._endpoint.timeout_s:g} s")
        return bytes(body)

    def _hidden(self, text: str) -> str:
        return text if self._key is None else text.replace(self._key, "**********")


def _ends(text: str) -> list[int]:
    return [match.end() for match in _TOKEN.finditer(text)]


def _cut(text: str, tokens_max: int) -> tuple[str, int]:
    """What of the text is sent, and how many tokens the whole has."""
    ends = _ends(text)
    return (text if len(ends) <= tokens_max else text[: ends[tokens_max - 1]]), len(ends)


def _requests(sizes: Sequence[int], endpoint: EndpointConfig) -> Iterator[tuple[int, int]]:
    """First text and the one after the last, per request. A text that is too large alone goes alone."""
    first, tokens = 0, 0
    for number, size in enumerate(sizes):
        if number > first and (
            number - first >= endpoint.request_texts_max or tokens + size > endpoint.request_tokens_max
        ):
            yield first, number
            first, tokens = number, 0
        tokens += size
    if sizes:
        yield first, len(sizes)
