"""What `serve` needs of the sections `access` and `serve: tls`: a guard, a look at the address, uvicorn's options."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.core.config import Config
    from pipeline.lookup.guarding import Guard

CONNECTIONS_MAX = 10_000
KEEP_ALIVE_S = 5


def open_guard(config: Config) -> Guard:
    """Raises ConfigError for files that can't be used, EnvironmentProblem for a missing package."""
    from pipeline.core.clock import SystemClock
    from pipeline.lookup.audit import Audit
    from pipeline.lookup.credentials import Gate
    from pipeline.lookup.guarding import Guard

    access = config.access
    if not access.configured:
        return Guard()
    secret = access.audit_secret
    audit = Audit(None if secret is None else secret.get_secret_value().encode())
    return Guard(Gate(access, config.path.parent, SystemClock()), audit)


def refuse_unprotected(config: Config, host: str, meant: bool) -> None:
    """Raises ConfigError where other machines could read everything and nobody said that they may."""
    if config.access.configured or meant or config.serve.unprotected or is_local(host):
        return
    raise ConfigError(
        [
            f"{config.path}: serve on {host} lets every machine that reaches it read every bundle. Add a section "
            "access (access: {keys_file: keys.json}, and make a key with ctxpipe key new), listen on 127.0.0.1, or say "
            "that it is meant: --unprotected, or serve: {unprotected: true}"
        ]
    )


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address. What can't be resolved is not."""
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address[4][0]).partition("%")[0]).is_loopback for address in found)


def server_options(config: Config) -> dict[str, Any]:
    """uvicorn's: limits on clients, and TLS where it is configured. Raises ConfigError for files that can't be used."""
    from pipeline.lookup.protocol import LimitedProtocol

    options: dict[str, Any] = {
        "http": LimitedProtocol,
        "ws": "none",
        "limit_concurrency": CONNECTIONS_MAX,
        "timeout_keep_alive": KEEP_ALIVE_S,
        # An address in a header is anybody's word; whom we believe is said in access: mtls: proxies.
        "proxy_headers": False,
    }
    return options | _tls_options(config)


def _tls_options(config: Config) -> dict[str, Any]:
    import ssl

    tls = config.serve.tls
    if tls is None:
        return {}
    folder = config.path.parent
    certificate, key = folder / tls.certificate, folder / tls.key
    authority = None if tls.client_ca is None else folder / tls.client_ca
    password = None if tls.key_password is None else tls.key_password.get_secret_value()
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Without one, OpenSSL would ask at the terminal.
        context.load_cert_chain(certificate, key, password or "")
        if authority is not None:
            context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(file) for file in (certificate, key, authority) if file is not None)
        reason = error.strerror or str(error)
        raise ConfigError([f"{config.path}: serve.tls: {files}: can't be used: {reason}"]) from None
    required = ssl.CERT_REQUIRED if tls.client_certificate == "required" else ssl.CERT_OPTIONAL
    return {
        "ssl_certfile": str(certificate),
        "ssl_keyfile": str(key),
        "ssl_keyfile_password": password,
        "ssl_ca_certs": None if authority is None else str(authority),
        "ssl_cert_reqs": ssl.CERT_NONE if authority is None else required,
    }
