"""The section `guard` of ctxpipe.yaml: which models there are, in which order a task's call goes down them, what may be
spent, and where the questions go that nobody could answer. `pipeline.guard` works by it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sized
from decimal import Decimal
from pathlib import Path
from typing import Literal

from pydantic import Field, PrivateAttr, SecretStr, field_validator, model_validator

from pipeline.core.addresses import is_web_address
from pipeline.core.section import ConfigPart
from schemas.yaml_file import Mistake, suggestion

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")

Constraint = Literal["none", "json_object", "json_object_schema", "json_schema"]
"""json_schema as OpenAI, vLLM and Ollama take it; json_object_schema is llama.cpp's own, with the schema beside it."""


class Endpoint(ConfigPart):
    """An OpenAI-compatible API and a model there. `revision` is part of what recordings are keyed by.

    `constraint`: how it is asked to keep to a schema; whatever it promises, every output is checked. `price` names an
    entry of the price table, the model's name where it is left out; an unknown one makes costs unknown. `timeout_s` is
    for one attempt. `reserve_s` of a call's time stays for this endpoint while those above are tried; None: a share. A
    429 without a usable Retry-After pauses it for `cooldown_s`, one with it for as long as it says, at most
    `cooldown_s_max`.
    """

    name: str = Field(min_length=1, max_length=100)
    url: str = Field(repr=False, description="up to /v1, e.g. https://api.openai.com/v1")
    model: str = Field(min_length=1, max_length=300)
    revision: str = ""
    provider: str = Field(default="openai", description="gen_ai.provider.name of its telemetry")
    api_key: SecretStr | None = Field(default=None, min_length=1)
    certificate_authority: str | None = Field(default=None, description="PEM file, where the machine's don't count")
    constraint: Constraint = "json_schema"
    price: str | None = None
    timeout_s: float = Field(default=30, gt=0, le=600)
    reserve_s: float | None = Field(default=None, ge=0, le=600)
    concurrency_max: int = Field(default=256, ge=1, le=100_000)
    answer_bytes_max: int = Field(default=4 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    cooldown_s: float = Field(default=5, gt=0, le=3600)
    cooldown_s_max: float = Field(default=300, gt=0, le=86_400)

    @property
    def price_name(self) -> str:
        """Its entry in the price table."""
        return self.price or self.model

    @field_validator("url")
    @classmethod
    def _address(cls, value: str) -> str:
        if not is_web_address(value):
            raise ValueError("is no address of an API; write https://host/v1")
        return value.rstrip("/")


class Route(ConfigPart):
    """The ladder of one task: `primary`, `retries_max` more tries there, `others` in order, `local` in order.

    A rate limit goes to `local` at once and comes back to `others` only where none of them answered. `hedge_after_s`:
    the first of `others` is asked too when the primary has not answered by then; None: never. `deterministic` says
    whether the application's function for this task may answer before a person has to.
    """

    primary: str
    others: tuple[str, ...] = ()
    local: tuple[str, ...] = ()
    retries_max: int = Field(default=1, ge=0, le=10)
    retry_delay_s: float = Field(default=0.1, ge=0, le=60, description="the most the first retry waits; then doubled")
    repair_turn: bool = True
    hedge_after_s: float | None = Field(default=None, gt=0, le=600)
    deterministic: bool = True

    @property
    def endpoints(self) -> tuple[str, ...]:
        return (self.primary, *self.others, *self.local)


class BreakerConfig(ConfigPart):
    """`failures_max` in a row open it; it stays open for `open_s`, twice as long after each probe that fails, at most
    `open_s_max`; up to `jitter` of that is added by chance, so that many processes don't probe at one moment."""

    failures_max: int = Field(default=3, ge=1, le=1000)
    open_s: float = Field(default=10, gt=0, le=3600)
    open_s_max: float = Field(default=300, gt=0, le=86_400)
    jitter: float = Field(default=0.1, ge=0, le=1)


class BudgetConfig(ConfigPart):
    """Of this process. `tenant_cost_per_hour_max` by tenant name, `*` for those that are not named and for none.

    With a limit in force, an endpoint whose price is unknown is passed over: nobody could say what is left.
    """

    tenant_cost_per_hour_max: dict[str, Decimal] = Field(default_factory=dict)
    tenant_concurrency_max: int | None = Field(default=None, ge=1, le=100_000)


class GuardRoutes(ConfigPart):
    """`routes` by task; `*` is for tasks that are not named."""

    endpoints: tuple[Endpoint, ...]
    routes: dict[str, Route]
    breaker: BreakerConfig = Field(default_factory=BreakerConfig)
    budget: BudgetConfig = Field(default_factory=BudgetConfig)

    @field_validator("endpoints", "routes")
    @classmethod
    def _some(cls, value: Sized) -> Sized:
        """pydantic's own check would count those alone that are right."""
        if not value:
            raise ValueError("must not be empty")
        return value


class GuardConfig(GuardRoutes):
    """What a guard is made of."""

    @model_validator(mode="after")
    def _whole(self) -> GuardConfig:
        mistakes = [mistake.text for mistake in _mistakes(self.endpoints, self.routes)]
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self


class WebhookConfig(ConfigPart):
    """Where each question that is put to people is posted, as JSON, signed as Standard Webhooks asks for it.

    `secret`: `whsec_` and base64, or any text of 16 characters and more. `in_process`: whoever opens the guard sends
    them; false leaves that to `ctxpipe escalations deliver`. An answer 4xx is tried `refusals_max` times, then the
    question is passed over and stays in the queue; everything else is tried until it is taken.
    """

    url: str = Field(repr=False)
    secret: SecretStr
    certificate_authority: str | None = Field(default=None, description="PEM file, relative to this file")
    timeout_s: float = Field(default=10, gt=0, le=120)
    delay_s: float = Field(default=1, gt=0, le=600, description="before the second try; then doubled")
    delay_s_max: float = Field(default=60, gt=0, le=3600)
    refusals_max: int = Field(default=5, ge=1, le=1000)
    in_process: bool = True

    @field_validator("url")
    @classmethod
    def _address(cls, value: str) -> str:
        if not is_web_address(value):
            raise ValueError("is no address of a webhook; write https://host/path")
        return value

    @field_validator("secret")
    @classmethod
    def _strong(cls, value: SecretStr) -> SecretStr:
        if len(webhook_key(value.get_secret_value())) < 16:
            raise ValueError("is no key; write whsec_ and 16 bytes in base64, or 16 characters")
        return value


def webhook_key(secret: str) -> bytes:
    """The key itself; b"" where what follows `whsec_` is no base64."""
    prefix, _, encoded = secret.rpartition("whsec_")
    if prefix or not secret.startswith("whsec_"):
        return secret.encode()
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return b""


class EscalationsConfig(ConfigPart):
    """Where questions go that nothing could answer: a topic of one partition, made where it is missing.

    Questions and answers are kept for `kept_days`. `put_timeout_s`: what storing one may take before the guard says
    that it failed.
    """

    topic: str = "ctxpipe.escalations"
    kept_days: int = Field(default=90, ge=1, le=3650)
    put_timeout_s: float = Field(default=10, gt=0, le=30)
    webhook: WebhookConfig | None = None

    @field_validator("topic")
    @classmethod
    def _name(cls, value: str) -> str:
        if not _TOPIC.fullmatch(value):
            raise ValueError(f"{value[:50]!r} is no name of a topic; write letters, digits, dots, _ and -")
        return value


class GuardSection(GuardRoutes):
    """`routing`: a file that names the active model per task, and whose changes are taken over while running; tasks
    that it does not name go by `routes`. `prices`: a price table in place of the one that comes with ctxpipe. Files are
    relative to this one."""

    routing: str | None = Field(default=None, min_length=1, description="routing.yaml")
    prices: str | None = Field(default=None, min_length=1, description="a price table, TOML")
    escalations: EscalationsConfig = Field(default_factory=EscalationsConfig)

    _folder: Path = PrivateAttr(default=Path())

    @property
    def routing_file(self) -> Path | None:
        return None if self.routing is None else self._folder / self.routing

    @property
    def prices_file(self) -> Path | None:
        return None if self.prices is None else self._folder / self.prices

    def certificate_authority(self, file: str | None) -> str | None:
        """Of an endpoint or the webhook, as a path from here."""
        return None if file is None else str(self._folder / file)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What has to stand in no record."""
        keys = [endpoint.api_key for endpoint in self.endpoints]
        keys += [self.escalations.webhook.secret] if self.escalations.webhook is not None else []
        return tuple(key.get_secret_value() for key in keys if key is not None)

    @property
    def config(self) -> GuardConfig:
        """What the guard takes."""
        endpoints = tuple(
            endpoint.model_copy(
                update={"certificate_authority": self.certificate_authority(endpoint.certificate_authority)}
            )
            for endpoint in self.endpoints
        )
        return GuardConfig(endpoints=endpoints, routes=self.routes, breaker=self.breaker, budget=self.budget)


def guard_mistakes(guard: GuardSection | None, embedding_endpoints: Mapping[str, object]) -> Iterator[Mistake]:
    """What does not fit together, at its place in ctxpipe.yaml."""
    if guard is None:
        return
    for mistake in _mistakes(guard.endpoints, guard.routes):
        yield Mistake(("guard", *mistake.location), mistake.text)
    for number, endpoint in enumerate(guard.endpoints):
        if endpoint.name in embedding_endpoints:
            text = f"embedding.endpoints has {endpoint.name!r} too, and metrics go by the name; take another one"
            yield Mistake(("guard", "endpoints", number, "name"), text)


def _mistakes(endpoints: tuple[Endpoint, ...], routes: Mapping[str, Route]) -> Iterator[Mistake]:
    names = [endpoint.name for endpoint in endpoints]
    for number, name in enumerate(names):
        if name in names[:number]:
            yield Mistake(("endpoints", number, "name"), f"there are two endpoints {name!r}")
    for task, route in routes.items():
        for name in dict.fromkeys(route.endpoints):
            if name not in names:
                text = f"route {task!r} names the endpoint {name!r}, which is not there{suggestion(name, names)}"
                yield Mistake(("routes", task), text)
        if len(set(route.endpoints)) < len(route.endpoints):
            text = f"route {task!r} names an endpoint twice; use retries_max to try one again"
            yield Mistake(("routes", task), text)
