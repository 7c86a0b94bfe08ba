"""Which endpoints there are, and in which order a task's call goes down them; read once, and by the routing file."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from pipeline.core.addresses import is_web_address
from pipeline.core.section import ConfigPart

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


class GuardConfig(ConfigPart):
    """`routes` by task; `*` is for tasks that are not named."""

    endpoints: tuple[Endpoint, ...] = Field(min_length=1)
    routes: dict[str, Route] = Field(min_length=1)
    breaker: BreakerConfig = Field(default_factory=BreakerConfig)
    budget: BudgetConfig = Field(default_factory=BudgetConfig)

    @model_validator(mode="after")
    def _whole(self) -> GuardConfig:
        mistakes = list(_mistakes(self))
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self


def _mistakes(config: GuardConfig) -> list[str]:
    names = [endpoint.name for endpoint in config.endpoints]
    found = [f"there are two endpoints {name!r}" for name in sorted({one for one in names if names.count(one) > 1})]
    known = ", ".join(sorted(set(names)))
    for task, route in config.routes.items():
        found += [
            f"route {task!r} names the endpoint {name!r}, which is none of {known}"
            for name in route.endpoints
            if name not in names
        ]
        if len(set(route.endpoints)) < len(route.endpoints):
            found.append(f"route {task!r} names an endpoint twice; use retries_max to try one again")
    return found
