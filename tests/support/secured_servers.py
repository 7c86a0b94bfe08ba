"""A Kafka that wants a login and speaks TLS, and a Redis likewise, for tests of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.local.kafka import KafkaServer
from deploy.local.processes import HOST, choose_port
from tests.support.certificates import Authority

KAFKA_USER, KAFKA_PASSWORD = "pipeline", "log in: €@;"
_LOGIN = "org.apache.kafka.common.security"


class SecuredKafka(KafkaServer):
    """Beside its plain listener, which tests wait for, one with SASL over TLS at `secured_address`; both mechanisms."""

    def __init__(self, authority: Authority, **options: Any) -> None:
        super().__init__(**options)
        self._authority, self._secured_port = authority, choose_port()
        certificate, key = authority.issue(f"kafka-{self._secured_port}", f"IP:{HOST}")
        self._keystore = authority.folder / f"kafka-{self._secured_port}-both.pem"
        self._keystore.write_text(key.read_text() + certificate.read_text())

    @property
    def secured_address(self) -> str:
        return f"{HOST}:{self._secured_port}"

    def client(self) -> dict[str, str]:
        """For the section `kafka`."""
        return {
            "bootstrap.servers": self.secured_address,
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "PLAIN",
            "sasl.username": KAFKA_USER,
            "sasl.password": KAFKA_PASSWORD,
            "ssl.ca.location": str(self._authority.certificate),
        }

    def _listeners(self) -> dict[str, str]:
        plain = super()._listeners()
        secured = f",SECURED://{self.secured_address}"
        password = KAFKA_PASSWORD.replace("€", "\\u20ac")
        login = f'{_LOGIN}.plain.PlainLoginModule required user_{KAFKA_USER}="{password}";'
        return {
            **plain,
            "listeners": plain["listeners"] + secured,
            "advertised.listeners": plain["advertised.listeners"] + secured,
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURED:SASL_SSL",
            "listener.name.secured.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.secured.plain.sasl.jaas.config": login,
            "listener.name.secured.ssl.keystore.type": "PEM",
            "listener.name.secured.ssl.keystore.location": str(self._keystore),
        }


def secured_redis(make_redis: Any, authority: Authority, *users: list[str]) -> tuple[Any, int]:
    """The server, and its port with TLS, where clients need a certificate too."""
    certificate, key = authority.issue("redis", "IP:127.0.0.1", "DNS:localhost")
    port = choose_port()
    files: dict[str, Path] = {"cert": certificate, "key": key, "ca-cert": authority.certificate}
    settings = ["--tls-port", str(port), "--tls-auth-clients", "yes"]
    settings += [word for name, file in files.items() for word in (f"--tls-{name}-file", str(file))]
    server = make_redis(settings=settings)
    for user in users:
        server.ask("ACL", "SETUSER", *user)
    return server, port
