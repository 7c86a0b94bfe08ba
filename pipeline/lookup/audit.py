"""One line per access on the logger ctxpipe.audit: who, what, whose, how it ended; keys as hashes, no secrets."""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.core import metrics
from pipeline.lookup.credentials import Refused
from pipeline.lookup.narrowing import NotAllowed
from pipeline.lookup.principal import Principal

HASH_BYTES = 8
"""Of a key in a line: enough to find the accesses of one key, whoever has the secret."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")

_LOG = logging.getLogger("ctxpipe.audit")


@dataclass(slots=True)
class Access:
    """What is known of a request; filled in on its way."""

    action: str
    context: str | None
    started_s: float
    peer: str | None
    principal: Principal | None = None
    keys: Sequence[str] = field(default_factory=list)
    answered: str = ""


class Audit:
    """Lines are `extra` of a log record, so that JSON logs have them as members beside `time`."""

    def __init__(self, secret: bytes | None = None) -> None:
        """`secret` keys the hashes; None: a random one, with which lines of this process alone can be compared."""
        self._secret = hashlib.blake2b(secret or secrets.token_bytes(32)).digest()[:64]

    def tell(self, access: Access, status: int | None, error: Exception | None) -> None:
        principal, context = access.principal, access.context
        extra = {
            "principal": None if principal is None else principal.name,
            "tenant": None if principal is None else principal.tenant,
            "action": access.action,
            # A path is whatever somebody sent.
            "context": context if context is None or _NAME.fullmatch(context) else "invalid",
            "keys": " ".join(map(self.hash_key, access.keys)),
            "outcome": _outcome(status, error),
            "answered": access.answered,
            "peer": access.peer,
            "duration_ms": round((time.perf_counter() - access.started_s) * 1000, 3),
        }
        if isinstance(error, Refused | NotAllowed):
            extra["reason"] = error.reason if isinstance(error, Refused) else str(error)
            metrics.lookup_refused.labels(extra["outcome"]).inc()
        level = logging.WARNING if isinstance(error, Refused | NotAllowed) else logging.INFO
        _LOG.log(level, "access", extra=extra)

    def hash_key(self, key: str) -> str:
        """Keyed, so that nobody finds a key again by trying all of them."""
        return hashlib.blake2b(key.encode(errors="replace"), key=self._secret, digest_size=HASH_BYTES).hexdigest()


def _outcome(status: int | None, error: Exception | None) -> str:
    if isinstance(error, Refused):
        return "unauthenticated"
    if isinstance(error, NotAllowed):
        return "forbidden"
    if error is not None:
        return f"not answered: {type(error).__name__}"
    return "answered" if status is not None and status < 500 else "failed"
