"""Where Kafka is and how to log in, as `ctxpipe.yaml` says it, in the spellings of librdkafka: the section `kafka`."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, SecretStr, field_validator, model_validator

from pipeline.core.section import ConfigPart
from pipeline.core.tls import client_context

Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
_SPELLINGS = {"bootstrap.servers": "bootstrap_servers", "sasl.mechanisms": "sasl.mechanism"}


class KafkaConfig(ConfigPart):
    """`partitions` and `replication_factor` are for topics that ctxpipe makes. Files are PEM, relative to this file;
    without `ssl.ca.location` the machine's own authorities count. `session.timeout.ms`: a worker that has not been
    heard of for so long is taken for dead, and others take over; brokers take 6 s to 30 min, unless told otherwise.

    `group.instance.id`: a name that stays the same over a restart of this worker (a pod of a StatefulSet has one). With
    it, whoever comes back within `session.timeout.ms` gets its partitions again and nobody else stands still; without,
    every worker that comes or goes makes its whole group share out anew. No two at once may have the same; empty: none.
    """

    bootstrap_servers: str = Field(min_length=1, description="host:port, several with commas between them")
    partitions: int = Field(default=8, ge=1, le=1000)
    replication_factor: int = Field(default=1, ge=1, le=10)
    session_timeout_ms: int = Field(default=25_000, ge=1_000, le=1_800_000, alias="session.timeout.ms")
    group_instance_id: str = Field(default="", alias="group.instance.id", max_length=200, pattern=r"^[A-Za-z0-9._-]*$")
    security_protocol: Protocol = Field(default="PLAINTEXT", alias="security.protocol")
    sasl_mechanism: Mechanism | None = Field(default=None, alias="sasl.mechanism")
    sasl_username: str | None = Field(default=None, min_length=1, alias="sasl.username")
    sasl_password: SecretStr | None = Field(default=None, min_length=1, alias="sasl.password")
    ssl_ca: str | None = Field(default=None, min_length=1, alias="ssl.ca.location")
    ssl_certificate: str | None = Field(default=None, min_length=1, alias="ssl.certificate.location")
    ssl_key: str | None = Field(default=None, min_length=1, alias="ssl.key.location")
    ssl_key_password: SecretStr | None = Field(default=None, min_length=1, alias="ssl.key.password")
    ssl_identification: Literal["https", "none"] = Field(default="https", alias="ssl.endpoint.identification.algorithm")

    _folder: Path = PrivateAttr(default=Path())

    @property
    def encrypted(self) -> bool:
        return self.security_protocol in ("SSL", "SASL_SSL")

    @property
    def security(self) -> dict[str, Any]:
        """What aiokafka's clients take beside the address. Raises ConfigError for files that can't be used."""
        found: dict[str, Any] = {"security_protocol": self.security_protocol}
        if self.security_protocol == "PLAINTEXT":
            return {}
        if self.sasl_mechanism is not None and self.sasl_password is not None:
            found["sasl_mechanism"] = self.sasl_mechanism
            found["sasl_plain_username"] = self.sasl_username
            found["sasl_plain_password"] = self.sasl_password.get_secret_value()
        if self.encrypted:
            found["ssl_context"] = self._tls_context()
        return found

    @property
    def java(self) -> dict[str, str]:
        """The same as Kafka's Java clients name it, for those that run beside us. Raises ConfigError."""
        if self.security_protocol == "PLAINTEXT":
            return {}
        found = {"security.protocol": str(self.security_protocol)}
        if self.sasl_mechanism is not None and self.sasl_password is not None:
            found["sasl.mechanism"] = self.sasl_mechanism
            module = "plain.Plain" if self.sasl_mechanism == "PLAIN" else "scram.Scram"
            user, password = _quoted(self.sasl_username or ""), _quoted(self.sasl_password.get_secret_value())
            login = (
                f"org.apache.kafka.common.security.{module}LoginModule required username={user} password={password};"
            )
            found["sasl.jaas.config"] = login
        return found | (self._java_tls() if self.encrypted else {})

    def _java_tls(self) -> dict[str, str]:
        self._tls_context()  # tells what is wrong with the files
        found = {"ssl.endpoint.identification.algorithm": "https" if self.ssl_identification == "https" else ""}
        authority, certificate, key = (
            self._path(self.ssl_ca),
            self._path(self.ssl_certificate),
            self._path(self.ssl_key),
        )
        if authority is not None:
            found |= {"ssl.truststore.type": "PEM", "ssl.truststore.location": str(Path(authority).absolute())}
        if certificate is not None and key is not None:
            found["ssl.keystore.type"] = "PEM"
            found["ssl.keystore.certificate.chain"] = Path(certificate).read_text()
            found["ssl.keystore.key"] = Path(key).read_text()
        if self.ssl_key_password is not None:
            found["ssl.key.password"] = self.ssl_key_password.get_secret_value()
        return found

    def _tls_context(self) -> ssl.SSLContext:
        context = client_context(
            "kafka",
            self._path(self.ssl_ca),
            self._path(self.ssl_certificate),
            self._path(self.ssl_key),
            self.ssl_key_password,
        )
        context.check_hostname = self.ssl_identification == "https"
        return context

    def _path(self, file: str | None) -> str | None:
        return None if file is None else str(self._folder / file)

    @model_validator(mode="before")
    @classmethod
    def _spellings(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {_SPELLINGS.get(name, name): value for name, value in data.items() if name not in _named_twice(data)}

    @field_validator("bootstrap_servers")
    @classmethod
    def _addresses(cls, value: str) -> str:
        for address in value.split(","):
            host, _, port = address.strip().rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise ValueError(f"{address.strip()!r} is not host:port, e.g. 127.0.0.1:9092")
        return value

    @field_validator("security_protocol", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        """As librdkafka takes it."""
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _together(self) -> KafkaConfig:
        sasl = self.security_protocol.startswith("SASL")
        given = {"sasl.username": self.sasl_username, "sasl.password": self.sasl_password}
        missing = [name for name, value in {"sasl.mechanism": self.sasl_mechanism, **given}.items() if value is None]
        if sasl and missing:
            raise ValueError(f"security.protocol {self.security_protocol} needs {', '.join(missing)}")
        if not sasl and len(missing) < 3:
            raise ValueError("sasl.… counts with security.protocol SASL_SSL only (or SASL_PLAINTEXT, which shows it)")
        if not self.encrypted and any((self.ssl_ca, self.ssl_certificate, self.ssl_key)):
            raise ValueError("ssl.… counts with security.protocol SSL or SASL_SSL only")
        if (self.ssl_certificate is None) != (self.ssl_key is None):
            raise ValueError("'ssl.certificate.location' and 'ssl.key.location' belong together")
        return self


def _quoted(text: str) -> str:
    """For a JAAS configuration."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _named_twice(data: dict[Any, Any]) -> set[str]:
    """A local stack's address stands in where the other spelling is given."""
    return {ours for theirs, ours in _SPELLINGS.items() if theirs in data}
