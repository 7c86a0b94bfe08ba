"""suite.yaml: what the suite is called, which flow it tests, and which files belong to it."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import AwareDatetime, Field, field_validator, model_validator

from pipeline.core.addresses import is_web_address
from pipeline.core.section import ConfigPart
from pipeline.evaluation.values import Kind

FILE = "suite.yaml"


class HttpFlow(ConfigPart):
    """A flow in any language. `url` gets each case by POST. `command` is started in the suite's folder for the
    run and ended with it; it has `ready_s` until the address answers. Without one, the flow has to run already."""

    url: str
    command: tuple[str, ...] = ()
    ready_s: float = Field(default=30, gt=0, le=600)
    timeout_s: float = Field(default=30, gt=0, le=600, description="for one case")

    @field_validator("url")
    @classmethod
    def _address(cls, value: str) -> str:
        if not is_web_address(value):
            raise ValueError("is no address; write http://127.0.0.1:9000/run")
        return value


class FlowPart(ConfigPart):
    """Either `python` (module:function) or `http`. `tools` is module:function, called with a case's input, and gives
    what the flow may do; `functions` are the guard's answers without a model, by task. `path`: folders to import from
    beside the working directory and the suite's folder, relative to the suite."""

    python: str | None = None
    http: HttpFlow | None = None
    tools: str | None = None
    functions: dict[str, str] = Field(default_factory=dict)
    path: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one(self) -> FlowPart:
        if (self.python is None) == (self.http is None):
            raise ValueError('write either python: "module:function" or http: {url: …}')
        if self.http is not None and self.functions:
            raise ValueError("functions are of a python flow; over http the flow has its own")
        return self


class Manifest(ConfigPart):
    """`now`: where every case's clock begins. `case_s_max`: of real time, for one case. `schemas`: names of JSON Schema
    files. `counts`: how many cases of each kind there have to be, so that none gets lost unseen. `fixtures`: patterns
    of files whose digests are part of the suite; None: all but cases, baseline, reports, code and Markdown. `routing`:
    a routing file, in the suite or not, whose active models are asked instead of guard.yaml's."""

    suite: str = Field(min_length=1, max_length=100)
    flow: FlowPart | None = None
    cases: tuple[str, ...] = ("cases/*.jsonl",)
    contexts: tuple[str, ...] = ("contexts/*.yaml",)
    guard: str | None = None
    routing: str | None = None
    recordings: str = "recordings"
    fixtures: tuple[str, ...] | None = None
    counts: dict[Kind, int] = Field(default_factory=dict)
    schemas: dict[str, str] = Field(default_factory=dict)
    now: AwareDatetime = datetime(2026, 1, 1, tzinfo=UTC)
    case_s_max: float = Field(default=30, gt=0, le=3600)

    @property
    def now_us(self) -> int:
        """Microseconds since 1970."""
        return int(self.now.timestamp()) * 1_000_000 + self.now.microsecond
