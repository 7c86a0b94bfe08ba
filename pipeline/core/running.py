"""How processes begin, tell of themselves and end: section `running` of `ctxpipe.yaml`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.core.section import ConfigPart

LogLevel = Literal["debug", "info", "warning", "error"]


class RunningConfig(ConfigPart):
    """Of every role. After SIGTERM, `serve` first answers 503 on /readyz for `pause_s`, so that nobody sends it more,
    and answers on meanwhile; then each role has `drain_s` to finish what it has begun. Both together, and some seconds,
    must be less than the time that the orchestrator gives (Kubernetes: terminationGracePeriodSeconds, 30 s)."""

    drain_s: float = Field(default=20.0, ge=1, le=3600)
    pause_s: float = Field(default=0.0, ge=0, le=300)
    metrics_host: str = Field(default="127.0.0.1", min_length=1, description="of --metrics-port; 0.0.0.0: all of ours")
    log_level: LogLevel = "info"

    @property
    def level(self) -> str:
        """As pipeline.core.logging takes it."""
        return self.log_level.upper()
