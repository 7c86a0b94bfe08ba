"""Who a client says it is: a credential that is given, or that of the environment."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.core.errors import ConfigError

API_KEY = "CTXPIPE_API_KEY"
"""Variable of the environment, also with _FILE."""


def credential_headers(api_key: str | None = None, token: str | None = None) -> dict[str, str]:
    """Given, or of the environment. Raises ConfigError for a file that can't be read."""
    if token is not None:
        return {"authorization": f"Bearer {token}"}
    if api_key is None:
        api_key, file = os.environ.get(API_KEY), os.environ.get(f"{API_KEY}_FILE")
        if api_key is None and file is not None:
            try:
                api_key = Path(file).read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError([f"{API_KEY}_FILE names {file}, which can't be read: {error}"]) from None
    return {"x-api-key": api_key.strip()} if api_key and api_key.strip() else {}
