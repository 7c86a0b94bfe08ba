"""Names in clients' certificates: of the connection itself, or as a proxy in front of us tells them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network
from typing import Any

ENVOY = "x-forwarded-client-cert"
_KINDS = {"URI": "URI", "DNS": "DNS", "email": "email"}
_PAIR = re.compile(r'([A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^;,]*)')


def certificate_names(certificate: Mapping[str, Any] | None) -> list[str]:
    """Of ssl's getpeercert(): `URI:…`, `DNS:…`, `email:…`."""
    names = (certificate or {}).get("subjectAltName", ())
    return [f"{_KINDS[kind]}:{value}" for kind, value in names if kind in _KINDS]


def header_names(header: str, value: str) -> list[str]:
    """Envoy's x-forwarded-client-cert: the names of its last element, which the proxy next to us wrote. Any other
    header holds one name as it is."""
    if header.lower() != ENVOY:
        return [value.strip()]
    last = _elements(value)[-1]
    found = [(kind, text.strip('"')) for kind, text in _PAIR.findall(last)]
    return [f"{_KINDS[kind]}:{text}" for kind, text in found if kind in _KINDS and text]


def from_proxy(address: str | None, networks: Iterable[str]) -> bool:
    """Whether a peer is one of the known proxies."""
    try:
        peer = ip_address(address or "")
    except ValueError:
        return False
    return any(peer in ip_network(network) for network in networks)


def _elements(value: str) -> list[str]:
    """Split at commas outside of quotes."""
    parts, start, quoted = [], 0, False
    for at, sign in enumerate(value):
        if sign == '"' and value[at - 1 : at] != "\\":
            quoted = not quoted
        elif sign == "," and not quoted:
            parts.append(value[start:at])
            start = at + 1
    return [*parts, value[start:]]
