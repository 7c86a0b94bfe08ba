"""Masks for personal data: what a spec's `mask:` does to a value before it may enter a bundle."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import msgspec


def mask(kind: str, value: Any, secret: bytes) -> str | None:
    """`hash`: 32 hex digits of HMAC-SHA256 under `secret`; `redact`: "***"; `last4`: "***" and four characters.

    Null stays null. Equal values have equal hashes, so that masked values can still be compared.
    """
    if value is None:
        return None
    if kind == "redact":
        return "***"
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    if kind == "last4":
        return "***" + (text[-4:] if len(text) > 4 else "")
    if kind == "hash":
        return hmac.new(secret, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:32]
    raise ValueError(f"unknown mask {kind!r}")
