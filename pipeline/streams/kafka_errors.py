"""From aiokafka's errors to ours, and which of them no waiting mends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnsupportedSaslMechanismError,
)

from pipeline.core.errors import EnvironmentProblem, Retryable

REQUEST_TIMEOUT_S = 15.0

Result = TypeVar("Result")

REFUSALS = (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnsupportedSaslMechanismError,
)


async def answered(address: str, request: Awaitable[Result]) -> Result:
    """What Kafka at `address` answers to one request. Raises EnvironmentProblem where it refuses us, Retryable where it
    is away or takes longer than REQUEST_TIMEOUT_S."""
    try:
        # Not wait_for, which forgets that it was cancelled when the answer comes at the same moment.
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            return await request
    except (KafkaError, OSError) as error:  # a TimeoutError is an OSError
        raise ours(address, error) from error


def ours(address: str, error: Exception) -> EnvironmentProblem | Retryable:
    """What an error of Kafka's at `address`, or of the way to it, is to us."""
    if isinstance(error, REFUSALS):
        return EnvironmentProblem(f"Kafka at {address} refuses us: {error!r}; check user and grants")
    return Retryable(f"Kafka at {address} does not answer ({error!r})")
