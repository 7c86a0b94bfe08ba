"""Schemas of Avro records, asked of schema registries before a batch is decoded; each once.

Decoding is pure, so that everything it needs is there beforehand. A registry that is away is waited for inside the
batch, like a store; a schema that it does not know sets aside the records that need it.
"""

from __future__ import annotations

import asyncio
import base64
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

import msgspec

from pipeline.core.debezium import debezium_sources
from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.report import BatchReport
from schemas.avro import AvroSchema, as_json, parse_schema, schema_number
from schemas.bundle import UnitKey
from schemas.errors import DecodeError
from schemas.record import Record
from schemas.source_format import SourceFormat

if TYPE_CHECKING:
    from pipeline.core.config import Config
    from pipeline.streams.handler import Stages

REQUEST_TIMEOUT_S = 10.0
ANSWER_BYTES_MAX = 8 * 1024 * 1024


class _Answer(msgspec.Struct):
    schema: str
    schema_type: str = msgspec.field(name="schemaType", default="AVRO")
    references: list[object] = []


class SchemaRegistry:
    """One registry, at `address` (http://[user:password@]host:port[/path]). Keeps every schema it was told."""

    def __init__(self, address: str) -> None:
        if find_spec("fastavro") is None:
            raise EnvironmentProblem("Reading Avro needs one more package: pip install 'ctxpipe[avro]'.")
        parts = urlsplit(address)
        login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        self._headers = {"Accept": "application/vnd.schemaregistry.v1+json, application/json"}
        if parts.username:
            self._headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
        host = parts.netloc.rpartition("@")[2]
        self._address = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
        self._schemas: dict[int, AvroSchema | str] = {}

    def translate(self, record: Record) -> Record:
        """The record in JSON. Raises DecodeError."""
        return as_json(record, self._schemas)

    async def load(self, records: Sequence[Record]) -> None:
        """Asks for what these records need and is not known. Raises Retryable while the registry is away."""
        numbers = {schema_number(part) for record in records for part in (record.key, record.value)}
        for number in sorted(number for number in numbers if number is not None):
            if not isinstance(self._schemas.get(number), AvroSchema):
                self._schemas[number] = await asyncio.to_thread(self._ask, number)

    def _ask(self, number: int) -> AvroSchema | str:
        request = urllib.request.Request(f"{self._address}/schemas/ids/{number}", headers=self._headers)
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as response:
                answer = msgspec.json.decode(response.read(ANSWER_BYTES_MAX), type=_Answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return f"the schema registry at {self._address} has no schema {number}"
            advice = "; mend user and password in schema_registry" if error.code in (401, 403) else ""
            raise Retryable(f"the schema registry at {self._address} answers {error.code}{advice}") from error
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            raise Retryable(f"the schema registry at {self._address} does not answer ({error})") from error
        if answer.schema_type != "AVRO":
            return f"schema {number} is of type {answer.schema_type}, and only Avro is read"
        if answer.references:
            return f"schema {number} takes types from other schemas of the registry, which is not supported"
        try:
            return parse_schema(answer.schema)
        except DecodeError as error:
            return f"schema {number}: {error}"


class Registries:
    """The registries of a configuration's sources; `formats` are the sources' formats, able to read Avro."""

    def __init__(self, config: Config) -> None:
        self.formats: dict[str, SourceFormat] = dict(config.formats)
        self._of_source: dict[str, SchemaRegistry] = {}
        by_address: dict[str, SchemaRegistry] = {}
        for name, source in debezium_sources(config.sources).items():
            if source.schema_registry is not None:
                address = source.schema_registry.get_secret_value()
                registry = by_address.setdefault(address, SchemaRegistry(address))
                self._of_source[name] = registry
                self.formats[name] = msgspec.structs.replace(self.formats[name], translate=registry.translate)

    def of(self, source: str) -> SchemaRegistry | None:
        return self._of_source.get(source)


class Registered:
    """The stages, with the schemas of each batch at hand before it is decoded. `topics`: topic → its registry."""

    def __init__(self, flow: Stages, topics: Mapping[str, SchemaRegistry]) -> None:
        self._flow, self._topics = flow, topics

    async def process(self, records: Sequence[Record]) -> BatchReport:
        needed: dict[SchemaRegistry, list[Record]] = {}
        for record in records:
            registry = self._topics.get(record.topic)
            if registry is not None:
                needed.setdefault(registry, []).append(record)
        for registry, theirs in needed.items():
            await registry.load(theirs)
        return await self._flow.process(records)

    async def rebuild(self, keys: Sequence[UnitKey]) -> BatchReport:
        return await self._flow.rebuild(keys)
