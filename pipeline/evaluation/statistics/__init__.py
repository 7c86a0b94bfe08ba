"""Whether a difference is one: pure decisions over paired numbers, for comparisons, the gate and drift."""

from __future__ import annotations

from pipeline.core.errors import EnvironmentProblem

try:
    import numpy  # noqa: F401 - whoever comes here needs both, and is told so once
    import scipy.special  # noqa: F401
except ImportError as error:
    raise EnvironmentProblem(
        f"comparing runs needs numpy and scipy ({error}); install them with pip install 'ctxpipe[evaluation]'"
    ) from error
