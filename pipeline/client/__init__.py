"""What an orchestrator imports: bundles by key and by meaning, from `ctxpipe serve` or straight from Redis."""

from pipeline.client.asynchronous import AsyncClient
from pipeline.client.blocking import Client
from pipeline.client.bundle import Bundle
from pipeline.client.errors import (
    BadRequest,
    ClientError,
    DeadlineExceeded,
    NotAllowed,
    NotOffered,
    Unavailable,
    UnknownContext,
)
from pipeline.client.results import ContextInfo, Found, Hit, PastBundle

__all__ = [
    "AsyncClient",
    "BadRequest",
    "Bundle",
    "Client",
    "ClientError",
    "ContextInfo",
    "DeadlineExceeded",
    "Found",
    "Hit",
    "NotAllowed",
    "NotOffered",
    "PastBundle",
    "Unavailable",
    "UnknownContext",
]
