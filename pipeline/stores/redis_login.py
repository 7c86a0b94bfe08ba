"""What redis-py needs to reach the configured Redis: login and TLS, as keywords of its clients."""

from __future__ import annotations

import ssl
from typing import Any

from pipeline.core.redis import RedisConfig
from pipeline.core.tls import client_context


def login_options(redis: RedisConfig | None) -> dict[str, Any]:
    """Beside the address. Raises ConfigError for files that can't be used, which redis-py would tell as an outage."""
    if redis is None:
        return {}
    options: dict[str, Any] = {
        "username": redis.username,
        "password": None if redis.password is None else redis.password.get_secret_value(),
    }
    if redis.secured:
        tls_context(redis)
        options |= {
            "ssl_ca_certs": _path(redis, redis.ca),
            "ssl_certfile": _path(redis, redis.certificate),
            "ssl_keyfile": _path(redis, redis.key),
            "ssl_password": None if redis.key_password is None else redis.key_password.get_secret_value(),
        }
    return {name: value for name, value in options.items() if value is not None}


def tls_context(redis: RedisConfig) -> ssl.SSLContext:
    """As redis-py makes it of the same files. Raises ConfigError for those that can't be used."""
    authority, certificate, key = (_path(redis, file) for file in (redis.ca, redis.certificate, redis.key))
    return client_context("redis", authority, certificate, key, redis.key_password)


def _path(redis: RedisConfig, file: str | None) -> str | None:
    return None if file is None else str(redis.folder / file)
