"""`ctxpipe.yaml`: where Kafka, Redis and the sources are, and which contexts are served; read once, at start."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, SecretStr, ValidationError, field_validator

from pipeline.core import debezium
from pipeline.core.access import AccessConfig, TlsConfig, access_mistakes
from pipeline.core.addresses import is_web_address
from pipeline.core.canary import CanaryConfig, canary_mistakes, canary_specs
from pipeline.core.collecting import CollectorConfig
from pipeline.core.errors import ConfigError
from pipeline.core.guarding import BreakerConfig, GuardSection, guard_mistakes
from pipeline.core.kafka import KafkaConfig
from pipeline.core.redis import RedisConfig
from pipeline.core.running import RunningConfig
from pipeline.core.section import ConfigPart
from pipeline.core.tracing import TelemetryConfig
from schemas.context import ContextSpec, FieldSpec, Name, Section
from schemas.context_file import ContextFile, read_context
from schemas.errors import SpecError
from schemas.source_format import SourceFormat
from schemas.yaml_file import SECRET_KEY, Document, Location, Mistake, mistakes_of, read_yaml, suggestion

DEFAULT_PATH = "ctxpipe.yaml"
STATE_FILE = Path(".ctxpipe") / "local" / "state.json"
"""Written by `ctxpipe up`; its addresses stand in for those that the file leaves out."""
LOCAL_MODEL, LOCAL_MODEL_NAME = "llm", "tiny"
"""The server of `ctxpipe up --with llm`, and the model there: an endpoint with it needs no url."""

_HIDDEN = "**********"
_URL_PASSWORD = re.compile(r"(?<=://)([^/@\s:]*):([^/\s]+)@")
_NAMED_PASSWORD = re.compile(r"\b((?:ssl)?password\s*=\s*)(?:'(?:[^'\\]|\\.)*'|[^\s&'\"]+)", re.IGNORECASE)
"""`password=…` of a connection string, or of an address's query."""
_VARIABLE = re.compile(r"\$(?:(\$)|\{([^}]*)\})")
_VARIABLE_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


class NearCacheConfig(ConfigPart):
    """Bundles in the lookup process itself, told by Redis of every change. `age_ms_max`: nothing is answered from it
    that Redis has not confirmed so lately. 0 bytes: none."""

    bytes_max: int = Field(default=64 * 1024 * 1024, ge=0, le=64 * 1024 * 1024 * 1024)
    age_ms_max: int = Field(default=1_000, ge=10, le=60_000)


class LastKnownConfig(ConfigPart):
    """Bundles as they were last seen, for the time that Redis is away; kept in the data directory. 0 bundles: none."""

    bundles_max: int = Field(default=20_000, ge=0, le=10_000_000)
    age_s_max: int = Field(default=86_400, ge=1, le=31_536_000, description="older ones are not answered any more")


class AdmissionConfig(ConfigPart):
    """More requests than `in_flight_max` at once, or more than can be answered in time, are refused at once. 0: as many
    as come."""

    in_flight_max: int = Field(default=256, ge=0, le=100_000)


class ServeConfig(ConfigPart):
    """Where `ctxpipe serve` listens; port 0 takes a free one. `data_directory` keeps the indexes of searches, which are
    read from Kafka anew where it is empty; one server to a folder. Other machines reach it only with `access`, or
    where `unprotected` says that everybody who does may read everything."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    data_directory: str = Field(default=".ctxpipe", min_length=1, description="relative to this file")
    unprotected: bool = False
    tls: TlsConfig | None = None
    near_cache: NearCacheConfig = Field(default_factory=NearCacheConfig)
    last_known: LastKnownConfig = Field(default_factory=LastKnownConfig)
    admission: AdmissionConfig = Field(default_factory=AdmissionConfig)


class EndpointConfig(ConfigPart):
    """An OpenAI-compatible API that embeds. `tokens_max` of a text, `request_…_max` of one request.

    `price_per_million_tokens` in any currency; without it, costs are unknown instead of 0. `breaker`: as of the
    endpoints under `guard`, whose metrics have this one, too.
    """

    url: str = Field(repr=False, description="up to /v1, e.g. https://api.openai.com/v1")
    api_key: SecretStr | None = Field(default=None, min_length=1)
    tokens_max: int = Field(default=8191, ge=8, le=1_000_000)
    request_texts_max: int = Field(default=256, ge=1, le=10_000)
    request_tokens_max: int = Field(default=100_000, ge=8, le=10_000_000)
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    price_per_million_tokens: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    timeout_s: float = Field(default=30, gt=0, le=600)
    encoding: Literal["float", "base64"] = "float"
    breaker: BreakerConfig = Field(default_factory=BreakerConfig)
    ask_dimension: bool = Field(default=False, description="send the spec's dimension, for models that can shorten")

    @field_validator("url")
    @classmethod
    def _address(cls, value: str) -> str:
        if not is_web_address(value):
            raise ValueError("is no address of an API; write https://host/v1")
        return value


class EmbeddingConfig(ConfigPart):
    """What engines of embeddings may use. Folders of `model_directories` are searched for the names of models.

    A batch goes to the engine with `batch_texts_max` texts, or when its oldest has waited `batch_wait_ms`, which is
    worth it where each call is paid for; what comes while the engine is busy goes together anyway.
    `candidate_texts_per_s` slows down the building of a space that does not serve yet, so that it spares a shared
    machine or a provider's limits; None: as fast as it goes.
    """

    endpoints: dict[Name, EndpointConfig] = Field(default_factory=dict)
    model_directories: list[str] = Field(default_factory=list, description="relative to this file")
    threads: int = Field(default=1, ge=1, le=256, description="of one engine")
    batch_texts_max: int = Field(default=32, ge=1, le=10_000)
    batch_wait_ms: float = Field(default=0.0, ge=0, le=10_000)
    candidate_texts_per_s: float | None = Field(default=None, gt=0)
    hub: bool = Field(default=False, description="true lets models be fetched from the Hugging Face hub")

    _folder: Path = PrivateAttr(default=Path())

    @property
    def folder(self) -> Path:
        """Where relative paths of models start: the folder of the file."""
        return self._folder

    @property
    def directories(self) -> list[Path]:
        """Where models are searched by name, in this order."""
        return [self._folder / Path(directory).expanduser() for directory in self.model_directories]


class Config(ConfigPart):
    """The whole file. `sources` are raw mappings with `connector`; the connector's own section class parses them."""

    kafka: KafkaConfig
    redis: RedisConfig
    sources: dict[Name, dict[str, Any]] = Field(default_factory=dict, repr=False)
    contexts: list[str] = Field(default_factory=list, description="file patterns, relative to this file")
    serve: ServeConfig = Field(default_factory=ServeConfig)
    access: AccessConfig = Field(default_factory=AccessConfig)
    embedding: EmbeddingConfig = Field(default_factory=EmbeddingConfig)
    collector: CollectorConfig = Field(default_factory=CollectorConfig)
    canary: CanaryConfig | None = None
    guard: GuardSection | None = None
    telemetry: TelemetryConfig = Field(default_factory=TelemetryConfig)
    running: RunningConfig = Field(default_factory=RunningConfig)
    mask_secret: SecretStr | None = Field(
        default=None, min_length=1, description="key of the hashes that mask: hash makes"
    )

    _path: Path = PrivateAttr(default=Path(DEFAULT_PATH))

    @property
    def path(self) -> Path:
        """The file that this was read from; relative patterns start in its folder."""
        return self._path

    @property
    def data_directory(self) -> Path:
        """Where `serve` keeps what it can read anew."""
        return self._path.parent / self.serve.data_directory

    @property
    def mask_key(self) -> bytes:
        """What plans hash with; load_contexts refuses specs that hash where there is none."""
        return b"" if self.mask_secret is None else self.mask_secret.get_secret_value().encode()

    @property
    def formats(self) -> dict[str, SourceFormat]:
        """How the topics of sources that others fill are named and written."""
        return {name: source.source_format() for name, source in debezium.debezium_sources(self.sources).items()}

    def topic(self, source: str, table: str) -> str:
        """Where the changes of a table are."""
        return debezium.topic_of(self.sources, source, table)

    def shown(self) -> dict[str, Any]:
        """Everything but the secrets, for `--json` and logs."""
        shown: dict[str, Any] = without_secrets(self.model_dump(mode="json"))
        return shown


def load(path: str | Path = DEFAULT_PATH) -> Config:
    """Raises ConfigError with every mistake of the file, each `file:line: where: what is wrong; how to mend it`."""
    file = Path(path)
    try:
        document = read_yaml(file)
    except SpecError as error:
        raise ConfigError(_with_advice(error.mistakes, file)) from None
    if not isinstance(document.data, dict):
        raise ConfigError([f"{file}:1: a configuration is a mapping with kafka, redis, sources and contexts"])
    mistakes: list[Mistake] = []
    data = filled(document.data, (), mistakes)
    _add_local_stack(data, file)
    mistakes += _missing_servers(data)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        named = {mistake.location for mistake in mistakes}
        mistakes += [m for m in mistakes_of(error, Config, {}) if m.location not in named and not _said(m)]
        raise ConfigError(document.sentences(mistakes)) from None
    config._path = file
    config.embedding._folder = config.redis._folder = config.kafka._folder = file.parent
    if config.guard is not None:
        config.guard._folder = file.parent
    mistakes += _source_mistakes(config)
    mistakes += [Mistake(at, text) for at, text in access_mistakes(config.access, config.serve.tls)]
    mistakes += canary_mistakes(config.canary, config.sources)
    mistakes += guard_mistakes(config.guard, config.embedding.endpoints)
    if mistakes:
        raise ConfigError(document.sentences(mistakes))
    return config


def load_contexts(config: Config) -> dict[str, ContextSpec]:
    """The contexts by name, sorted. Raises ConfigError with the mistakes of all their files."""
    return {name: file.spec for name, file in load_context_files(config).items()}


def load_context_files(config: Config) -> dict[str, ContextFile]:
    """As load_contexts, with the files that the specs came from: what a spec names is relative to its file."""
    mistakes: list[str] = []
    files: dict[str, ContextFile] = {}
    for path in _context_paths(config, mistakes):
        try:
            file = read_context(path)
        except SpecError as error:
            mistakes += error.mistakes
            continue
        name = file.spec.context
        other = files.setdefault(name, file)
        if other is not file:
            place, first = file.document.place(("context",)), other.document.place(("context",))
            mistakes.append(f"{place}: context {name!r} is declared in {first} already; keep one of the two files")
        mistakes += file.document.sentences(_context_mistakes(config, file.spec))
    for spec in canary_specs(config.canary, config.sources):
        if spec.context in files:
            place = files[spec.context].document.place(("context",))
            mistakes.append(
                f"{place}: context {spec.context!r} is the canary's of {config.path}; give this another name"
            )
        files[spec.context] = ContextFile(spec, Document(config.path))
        mistakes += files[spec.context].document.sentences(_context_mistakes(config, spec))
    if mistakes:
        raise ConfigError(mistakes)
    return {name: files[name] for name in sorted(files)}


def without_secrets(value: Any, key: str = "") -> Any:
    """A copy with passwords in addresses and everything under a key like `password` replaced by asterisks."""
    if isinstance(value, Mapping):
        return {name: without_secrets(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_secrets(inner, key) for inner in value]
    if isinstance(value, str):
        masked = mask_addresses(value)
        secret = SECRET_KEY.search(key) is not None and "://" not in value
        return _HIDDEN if secret else masked
    return value


def mask_addresses(text: str) -> str:
    """`scheme://user:password@host` → `scheme://user:**********@host`, and `password=…` alike."""
    return _NAMED_PASSWORD.sub(rf"\1{_HIDDEN}", _URL_PASSWORD.sub(rf"\1:{_HIDDEN}@", text))


def filled(value: Any, location: Location, mistakes: list[Mistake]) -> Any:
    """`${NAME}`, `${NAME:-otherwise}` and `$$` in every text. NAME_FILE names a file that holds the value."""
    if isinstance(value, dict):
        return {key: filled(inner, (*location, key), mistakes) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, (*location, i), mistakes) for i, inner in enumerate(value)]
    if not isinstance(value, str) or "$" not in value:
        return value

    def fill(found: re.Match[str]) -> str:
        return "$" if found.group(1) else _variable(found.group(2), location, mistakes)

    return _VARIABLE.sub(fill, value)


def _variable(text: str, location: Location, mistakes: list[Mistake]) -> str:
    parts = _VARIABLE_NAME.fullmatch(text)
    if parts is None:
        mistakes.append(Mistake(location, f"${{{text}}} is no variable; write ${{NAME}}, or $$ for a dollar sign"))
        return ""
    name, otherwise = parts.groups()
    value, file = os.environ.get(name), os.environ.get(f"{name}_FILE")
    if value is not None:
        return value
    if file is not None:
        try:
            return Path(file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            mistakes.append(Mistake(location, f"{name}_FILE names {file}, which can't be read: {reason}"))
            return ""
    if otherwise is None:
        text = f"the environment has no {name}, nor {name}_FILE with the path of a file that holds it"
        mistakes.append(Mistake(location, text))
    return otherwise or ""


def _add_local_stack(data: dict[str, Any], file: Path) -> None:
    """Puts in the addresses of a local stack that is up, where the file gives none."""
    addresses = _local_addresses(file)
    for section, key, server in (("kafka", "bootstrap_servers", "kafka"), ("redis", "url", "redis")):
        given = data.get(section)
        if server in addresses and (given is None or (isinstance(given, dict) and key not in given)):
            data[section] = {**(given or {}), key: addresses[server]}
    guard = data.get("guard")
    endpoints = guard.get("endpoints") if isinstance(guard, dict) and LOCAL_MODEL in addresses else None
    for endpoint in endpoints if isinstance(endpoints, list) else ():
        if isinstance(endpoint, dict) and endpoint.get("model") == LOCAL_MODEL_NAME:
            endpoint.setdefault("url", addresses[LOCAL_MODEL])


def _local_addresses(file: Path) -> dict[str, str]:
    for folder in (Path.cwd(), file.absolute().parent):
        try:
            state = json.loads((folder / STATE_FILE).read_text())
            if state["up"] is True:
                return {name: str(server["address"]) for name, server in state["servers"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return {}


def _missing_servers(data: Mapping[str, Any]) -> Iterator[Mistake]:
    for section, example in (("kafka", "{bootstrap_servers: host:9092}"), ("redis", "{url: redis://host:6379/0}")):
        if data.get(section) is None:
            yield Mistake(
                (section,), f"is not set and no local stack is up; write {section}: {example}, or run `ctxpipe up`"
            )


def _said(mistake: Mistake) -> bool:
    """What _missing_servers says better."""
    return not mistake.location and mistake.text in ("'kafka' is missing", "'redis' is missing")


def _source_mistakes(config: Config) -> Iterator[Mistake]:
    for name, section in config.sources.items():
        if not isinstance(section.get("connector"), str):
            yield Mistake(("sources", name), "'connector' is missing; write connector: postgres")
    foreign = {name: one for name, one in config.sources.items() if one.get("connector") == debezium.CONNECTOR}
    mistakes = [mistake for name, section in foreign.items() for mistake in debezium.section_mistakes(name, section)]
    yield from mistakes or debezium.topic_mistakes(debezium.debezium_sources(foreign))


def _context_paths(config: Config, mistakes: list[str]) -> list[Path]:
    """Each file once, in the order of the patterns and then of their names."""
    folder, found = config.path.parent, dict[Path, None]()
    for pattern in config.contexts:
        if not any(sign in pattern for sign in "*?["):
            found[folder / pattern] = None
            continue
        absolute = Path(pattern).is_absolute()
        start, rest = (Path("/"), pattern.lstrip("/")) if absolute else (folder, pattern)
        try:
            matches = sorted(path for path in start.glob(rest) if path.is_file())
        except (ValueError, NotImplementedError) as error:
            mistakes.append(f"{config.path}: contexts: {pattern!r} is no file pattern: {error}")
            continue
        if not matches:
            mistakes.append(f"{config.path}: contexts: no file matches {pattern!r} in {folder.absolute()}")
        found.update(dict.fromkeys(matches))
    return list(found)


def _context_mistakes(config: Config, spec: ContextSpec) -> Iterator[Mistake]:
    for name, entity in spec.entities.items():
        source = config.sources.get(entity.source)
        at = ("entities", name)
        if source is None and config.sources:
            hint = suggestion(entity.source, config.sources)
            yield Mistake((*at, "source"), f"{config.path} has no source {entity.source!r}{hint}")
        tables = source.get("tables") if source else None
        keyspace = source.get("keyspace") if source else None
        if isinstance(tables, list):
            tables = [table for table in tables if isinstance(table, str)]
            if keyspace:  # where one is given, tables may be written without it
                tables = [table if "." in table else f"{keyspace}.{table}" for table in tables]
        if isinstance(tables, list) and entity.table not in tables:
            hint = suggestion(entity.table, tables)
            text = f"source {entity.source} does not capture {entity.table}; add it in {config.path}{hint}"
            yield Mistake((*at, "table"), text)
    endpoint = spec.embedding.endpoint if spec.embedding is not None and spec.embedding.engine == "openai" else None
    if endpoint is not None and endpoint not in config.embedding.endpoints:
        hint = suggestion(endpoint, config.embedding.endpoints)
        text = f"{config.path} has no endpoint {endpoint!r} under 'embedding: endpoints:'{hint}"
        yield Mistake(("embedding", "endpoint"), text)
    if config.mask_secret is None:
        for location in _hashed(spec.fields, spec.sections, ()):
            text = f"hash needs a secret; write mask_secret: ${{CTXPIPE_MASK_SECRET}} in {config.path}"
            yield Mistake(location, text)


def _hashed(fields: list[FieldSpec], sections: Mapping[str, Section], at: Location) -> Iterator[Location]:
    yield from ((*at, "fields", i, "mask") for i, field in enumerate(fields) if field.mask == "hash")
    for name, section in sections.items():
        yield from _hashed(section.fields, section.sections, (*at, "sections", name))


def _with_advice(mistakes: list[str], file: Path) -> list[str]:
    if "no such file" not in mistakes[0]:
        return mistakes
    return [f"{mistakes[0]}; give another with --config or CTXPIPE_CONFIG (README shows how to write {file.name})"]
