"""Limits of a vector index; light, so that a configuration can name them without loading numpy or faiss."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class IndexLimits(BaseModel):
    """When rows are sealed, merged and kept on disk."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    head_rows_max: Annotated[int, Field(ge=1, le=1_000_000)] = 8_192
    """New vectors are compared one by one up to so many; then they are sealed."""
    flat_rows_max: Annotated[int, Field(ge=1, le=10_000_000)] = 20_000
    """Sealed rows without a faiss index, all together: above it they are merged into a segment with one."""
    dead_share_max: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Of a segment's rows that updates and deletions left behind: above it the segment is built anew."""
    segments_max: Annotated[int, Field(ge=1, le=1_000)] = 6
    """Sealed ones."""
    mapped_rows_min: Annotated[int, Field(ge=1)] = 50_000
    """The vectors of a segment with so many rows stay on disk and are mapped into memory as they are needed."""
    snapshot_changes_min: Annotated[int, Field(ge=1)] = 1_000
    """A snapshot is not worth its writing below so many changes since the last one."""
    snapshot_interval_s: Annotated[float, Field(ge=0)] = 60.0
    builder_niceness: Annotated[int, Field(ge=0, le=19)] = 15
    builder_threads: Annotated[int, Field(ge=1, le=256)] = 1
