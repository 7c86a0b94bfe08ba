"""Keys as callers write them: what can be a key of a context and what cannot. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.core.errors import CtxpipeError
from schemas.context import ContextSpec

KEY_CHARACTERS_MAX = 1024
KEYS_MAX = 1000


class MalformedKey(CtxpipeError):
    """Not a key of this context: the text says what is wrong."""


def check_key(spec: ContextSpec, key: str) -> None:
    """Raises MalformedKey for what cannot be a key of this context."""
    columns = spec.entities[spec.root].key
    if not isinstance(key, str) or not key:
        raise MalformedKey(f"a key is text of the form {'|'.join(columns)}, not empty")
    if len(key) > KEY_CHARACTERS_MAX:
        raise MalformedKey(f"a key of {len(key)} characters; at most {KEY_CHARACTERS_MAX} are allowed")
    if key.count("|") != len(columns) - 1:
        parts = "part" if len(columns) == 1 else "parts, joined by |"
        shape = "|".join(columns)
        raise MalformedKey(f"a key of {spec.context} has {len(columns)} {parts}: {shape} (a | inside a part is %7C)")
    if "\x00" in key or (not key.isprintable() and any("\ud800" <= character <= "\udfff" for character in key)):
        raise MalformedKey("a key has no NUL and no half of a surrogate pair")


def check_keys(spec: ContextSpec, keys: Sequence[str], keys_max: int = KEYS_MAX) -> None:
    """Raises MalformedKey for the first of them that is none, and for more than `keys_max`."""
    if len(keys) > keys_max:
        raise MalformedKey(f"{len(keys):,} keys at once; at most {keys_max:,} are allowed")
    for key in keys:
        check_key(spec, key)


def is_key(spec: ContextSpec, key: str) -> bool:
    """Whether a key from elsewhere can be one of this context."""
    try:
        check_key(spec, key)
    except MalformedKey:
        return False
    return True
