"""For `ctxpipe check`: does Redis answer the configured login, over TLS where that is asked for?"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pipeline.core.errors import ConfigError

if TYPE_CHECKING:
    from connectors.source import Finding
    from pipeline.core.redis import RedisConfig

TIMEOUT_S = 5.0


def check_redis(redis: RedisConfig) -> Finding:
    """A PING over a plain socket, so that nothing of a client's own stands between."""
    from connectors.source import Finding

    parts = urlsplit(redis.url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 6379
    try:
        answer = _answer(redis, host, port, _request(redis))
    except ConfigError as error:
        return Finding("unfit", "Redis", str(error), "Mend redis.ca, redis.certificate and redis.key.")
    except OSError as error:
        mend = "ctxpipe up, or mend redis.url"
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            mend = "Give redis.ca the authority that signed the server's certificate."
        return Finding("unreachable", "Redis", f"{host}:{port} can't be reached: {error}", mend)
    lines = answer.decode(errors="replace").splitlines()
    # Whoever is refused may still ping, as the user that nobody named.
    reason = next((line for line in lines if line.startswith("-")), "" if "+PONG" in lines else "no answer")
    if not reason:
        return Finding("ok", "Redis", f"{host}:{port} answers")
    mend = "Mend user and password in the section redis."
    return Finding("unreachable", "Redis", f"{host}:{port}: {reason}", mend)


def _request(redis: RedisConfig) -> bytes:
    parts = urlsplit(redis.url)
    password = unquote(parts.password or "")
    if redis.password is not None:
        password = redis.password.get_secret_value()
    words = [word for word in (redis.username or unquote(parts.username or ""), password) if word]
    return _packed("AUTH", *words) + _packed("PING") if password else _packed("PING")


def _packed(*words: str) -> bytes:
    """In Redis' protocol: a password may have any sign in it."""
    encoded = [word.encode() for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)


def _answer(redis: RedisConfig, host: str, port: int, request: bytes) -> bytes:
    from pipeline.stores.redis_login import tls_context

    context = tls_context(redis) if redis.secured else None
    with socket.create_connection((host, port), timeout=TIMEOUT_S) as plain:
        link = plain if context is None else context.wrap_socket(plain, server_hostname=host)
        with link:
            link.sendall(request)
            answer = b""
            while b"PONG" not in answer and b"-" not in answer:
                part = link.recv(1000)
                if not part:
                    break
                answer += part
            return answer
