"""A Kafka that gives a login only the rights that it was granted, for the collector's: describe groups, read topics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest

from deploy.local.kafka import KafkaServer
from deploy.local.processes import HOST, choose_port

USER, PASSWORD = "watcher", "watch"
TOPIC, GROUP = 2, 3
READ, DESCRIBE = 3, 8
_LITERAL, _ALLOW = 3, 3
_LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"


class GuardedKafka(KafkaServer):
    """Everything is allowed at its plain listener; at `guarded_address`, with a login, what `grant` gave."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._guarded_port = choose_port()

    @property
    def guarded_address(self) -> str:
        return f"{HOST}:{self._guarded_port}"

    @property
    def login(self) -> dict[str, str]:
        """As aiokafka's clients take it."""
        sasl = {"sasl_plain_username": USER, "sasl_plain_password": PASSWORD}
        return {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", **sasl}

    async def grant(self, rights: Iterable[tuple[int, str, int]]) -> None:
        """Each (kind, name, operation)."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.address)
        await admin.start()
        try:
            for kind, name, right in rights:
                rule = CreateAclsRequest(kind, name, _LITERAL, f"User:{USER}", "*", right, _ALLOW)
                answer = await admin._send_to_controller(rule)
                assert [code for code, _ in answer.creation_responses] == [0], answer
        finally:
            await admin.close()

    def _listeners(self) -> dict[str, str]:
        plain = super()._listeners()
        guarded = f",GUARDED://{self.guarded_address}"
        return {
            **plain,
            "listeners": plain["listeners"] + guarded,
            "advertised.listeners": plain["advertised.listeners"] + guarded,
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,GUARDED:SASL_PLAINTEXT",
            "listener.name.guarded.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.guarded.plain.sasl.jaas.config": f'{_LOGIN} user_{USER}="{PASSWORD}";',
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        }
