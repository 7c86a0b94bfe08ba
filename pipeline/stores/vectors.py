"""Opens the vector index of a space; light until then.

Contexts without embedding need neither numpy nor faiss.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import EnvironmentProblem
from pipeline.stores.vector_limits import IndexLimits

if TYPE_CHECKING:
    from pipeline.stores.vector_upkeep import KeptIndex


def open_index(
    folder: Path | None,
    space: str,
    dimension: int,
    fields: Sequence[str],
    limits: IndexLimits | None = None,
    anew: bool = False,
    clock: Clock | None = None,
) -> KeptIndex:
    """The index of `space`, as its last good snapshot in `folder` has it, else empty; None: nothing is kept.

    `fields` are the spec's filters; `anew` begins without the snapshot. Blocks while it reads. Raises
    EnvironmentProblem where faiss is missing, and FolderTaken, which is one, where another process has the folder open.
    """
    try:
        from pipeline.stores import faiss_library
        from pipeline.stores.vector_upkeep import KeptIndex
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"searching by vectors needs the package {error.name}; install it with pip install 'ctxpipe[search]'"
        ) from error
    faiss_library.library()
    return KeptIndex(folder, space, dimension, fields, limits or IndexLimits(), clock or SystemClock(), anew)
