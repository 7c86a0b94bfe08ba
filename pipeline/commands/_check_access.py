"""For `ctxpipe check`: what stands open, as far as the configuration tells. Nothing is connected to."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.commands._access import is_local, open_guard, server_options
from pipeline.core.errors import ConfigError, EnvironmentProblem

if TYPE_CHECKING:
    from connectors.source import Finding
    from pipeline.core.config import Config
    from pipeline.lookup.api_keys import StoredKey
    from schemas.context import ContextSpec

ENDING_S = 14 * 86_400


def check_access(config: Config, contexts: Mapping[str, ContextSpec]) -> list[Finding]:
    """Warnings, and what `serve` would refuse."""
    from connectors.source import Finding

    found = [*_lookups(config), *_tenants(config, contexts.values()), *_keys(config, contexts), *_servers(config)]
    return [Finding(*parts) for parts in found]


_Parts = tuple[str, str, str, str]
"""Severity, subject, message, how to mend it."""


def _lookups(config: Config) -> Iterator[_Parts]:
    serve, access = config.serve, config.access
    local = is_local(serve.host)
    try:
        open_guard(config)
        server_options(config)
    except (ConfigError, EnvironmentProblem) as error:
        yield "unfit", "access", str(error), ""
    if not access.configured:
        if not local:
            severity = "warning" if serve.unprotected else "unfit"
            text = f"everybody who reaches {serve.host}:{serve.port} reads every bundle"
            yield severity, "access", text, "Add a section access, and make keys with ctxpipe key new."
        return
    if not local and serve.tls is None:
        text = f"keys and bundles are sent readable to {serve.host}:{serve.port}"
        yield "warning", "access", text, "Add serve: tls, unless a proxy in front speaks TLS for it."
    if access.audit_secret is None:
        mend = "Give access: audit_secret."
        yield "note", "access", "keys in audit lines can't be compared over two runs of a server", mend
    for network in () if access.mtls is None else access.mtls.proxies:
        if ip_network(network).prefixlen == 0:
            text = f"mtls: proxies {network}: any client can say that it is any other"
            yield "warning", "access", text, "Name the proxies' own network."


def _tenants(config: Config, contexts: Iterable[ContextSpec]) -> Iterator[_Parts]:
    from pipeline.lookup.narrowing import tenant_filter

    for spec in contexts:
        if spec.tenant is None:
            continue
        subject = f"context {spec.context}"
        if not config.access.configured:
            text = f"keeps tenants apart by {spec.tenant}, but without access everybody reads the bundles of all"
            yield "warning", subject, text, "Add a section access."
        elif spec.embedding is not None and tenant_filter(spec, spec.embedding.filters) is None:
            text = f"searches are for holders of tenants:all only, since no filter names {spec.tenant}"
            yield "warning", subject, text, f"Add the field of {spec.tenant} to embedding: filters."


def _keys(config: Config, contexts: Mapping[str, ContextSpec]) -> Iterator[_Parts]:
    from pipeline.lookup.api_keys import read_keys

    if config.access.keys_file is None:
        return
    path = config.path.parent / config.access.keys_file
    try:
        keys = read_keys(path).keys
    except ConfigError:
        return  # the guard said so
    if path.stat().st_mode & 0o007:
        yield "warning", "access", f"{path} may be read by everybody on this machine", f"chmod 600 {path}"
    now_s = time.time()
    usable = [key for key in keys if key.state(now_s) == "usable"]
    if not usable:
        yield "warning", "access", f"{path} has no key that opens anything", "Make one with ctxpipe key new."
    for key in usable:
        yield from _key(key, contexts, now_s, path)


def _key(key: StoredKey, contexts: Mapping[str, ContextSpec], now_s: float, path: Path) -> Iterator[_Parts]:
    named = {scope.split(":")[2] for scope in key.scopes if scope.count(":") == 2} | {*key.fields}
    unknown = ", ".join(sorted(named - {*contexts}))
    if unknown:
        yield "warning", "access", f"key {key.id} of {key.name} names contexts that are not there: {unknown}", ""
    if key.expires_s is not None and key.expires_s - now_s < ENDING_S:
        days = (key.expires_s - now_s) / 86_400
        replaced = f"ctxpipe key new --replaces {key.id}"
        yield "note", "access", f"key {key.id} of {key.name} in {path} ends in {days:.1f} days", replaced


def _servers(config: Config) -> Iterator[_Parts]:
    redis, kafka = config.redis, config.kafka
    if not redis.url.startswith("unix://"):
        parts = urlsplit(redis.url)
        if not is_local(parts.hostname or ""):
            if not redis.secured:
                yield "warning", "Redis", "bundles and the password are sent readable", "Write rediss:// in redis.url."
            if not parts.password and redis.password is None:
                mend = "Give it a user for ctxpipe, and redis: username and password."
                yield "warning", "Redis", "everybody who reaches it reads and changes bundles", mend
    away = [
        one for one in kafka.bootstrap_servers.split(",") if not is_local(one.strip().rpartition(":")[0].strip("[]"))
    ]
    if away and not kafka.encrypted:
        what = "records" if kafka.security_protocol == "PLAINTEXT" else "records and the login"
        yield "warning", "Kafka", f"{what} are sent readable to {away[0].strip()}", "Use security.protocol SASL_SSL."
    if kafka.encrypted and kafka.ssl_identification == "none":
        mend = "Take ssl.endpoint.identification.algorithm out."
        yield "warning", "Kafka", "any server with a certificate of the authority is believed to be the broker", mend
