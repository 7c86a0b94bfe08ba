"""TLS of clients: one way to make it of files, and to tell those that can't be used."""

from __future__ import annotations

import ssl

from pydantic import SecretStr

from pipeline.core.errors import ConfigError


def client_context(
    section: str, authority: str | None, certificate: str | None, key: str | None, key_password: SecretStr | None
) -> ssl.SSLContext:
    """Without `authority` the machine's own ones count. `section` of ctxpipe.yaml names the files in ConfigError, which
    is raised for those that can't be used."""
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate is not None:
            # Without a password OpenSSL would ask at the terminal.
            context.load_cert_chain(certificate, key, "" if key_password is None else key_password.get_secret_value())
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(file for file in (authority, certificate, key) if file is not None)
        raise ConfigError([f"{section}: {files}: can't be used: {error.strerror or error}"]) from None
    return context
