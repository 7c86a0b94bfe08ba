"""The section `telemetry` of ctxpipe.yaml: how many traces begin here. Where they go, the environment says (OTEL_…)."""

from __future__ import annotations

from pydantic import Field

from pipeline.core.section import ConfigPart


class TelemetryConfig(ConfigPart):
    """`trace_one_batch_in`: of so many batches that a connector reads, one gets a trace, where traces are exported at
    all; 0: none of its own. Traces that come with records are always taken over."""

    trace_one_batch_in: int = Field(default=100, ge=0, le=1_000_000_000)
