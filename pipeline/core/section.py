"""What every section of ctxpipe.yaml is: frozen, and without keys that nobody knows."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ConfigPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
