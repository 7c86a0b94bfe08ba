"""The contexts of a configuration by name, for commands that take one."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from pipeline.core.errors import ConfigError
from schemas.context import ContextSpec


def spec_named(contexts: Mapping[str, ContextSpec], name: str) -> ContextSpec:
    """Raises ConfigError with the nearest name."""
    if name in contexts:
        return contexts[name]
    near = get_close_matches(name, contexts, 1)
    hint = f"did you mean {near[0]}?" if near else f"the configuration has {', '.join(sorted(contexts)) or 'none'}"
    raise ConfigError([f"no context {name!r}; {hint}"])
