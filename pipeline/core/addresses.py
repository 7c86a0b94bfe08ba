"""Addresses of services in ctxpipe.yaml, as every section takes them."""

from __future__ import annotations

from urllib.parse import urlsplit


def is_web_address(value: str) -> bool:
    """http or https, with a host, and with a port that can be one where it has any."""
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
