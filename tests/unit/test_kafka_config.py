"""The section `kafka`: librdkafka's spellings, what they become for the clients, and what doesn't fit together."""

from __future__ import annotations

import ssl
from pathlib import Path

import faust
import pytest
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from pipeline.core.config import Config, load
from pipeline.core.errors import ConfigError
from pipeline.streams.compose import stream_settings
from pipeline.streams.worker_app import options
from tests.support.certificates import make_authority

LOGIN = "sasl.mechanism: SCRAM-SHA-256, sasl.username: me, sasl.password: s3cret"


def loaded(folder: Path, section: str) -> Config:
    path = folder / "ctxpipe.yaml"
    path.write_text(f'redis: {{url: "redis://127.0.0.1:6379/0"}}\nkafka: {{{section}}}\n')
    return load(path)


def test_how_soon_a_silent_worker_is_missed(tmp_path: Path) -> None:
    given = options(stream_settings(loaded(tmp_path, '"bootstrap.servers": "a:1", session.timeout.ms: 6000')))
    assert (given["broker_session_timeout"], given["broker_heartbeat_interval"]) == (6.0, 0.75)
    unsaid = options(stream_settings(loaded(tmp_path, '"bootstrap.servers": "a:1"')))
    assert unsaid["broker_session_timeout"] == 25.0
    with pytest.raises(ConfigError, match=r"session\.timeout\.ms"):
        loaded(tmp_path, '"bootstrap.servers": "a:1", session.timeout.ms: 10')


def test_what_the_clients_and_faust_get(tmp_path: Path) -> None:
    make_authority(tmp_path)
    config = loaded(
        tmp_path, f'"bootstrap.servers": "a:1,b:2", security.protocol: sasl_ssl, ssl.ca.location: ca.pem, {LOGIN}'
    )
    assert config.kafka.bootstrap_servers == "a:1,b:2"
    security = config.kafka.security
    context = security.pop("ssl_context")
    assert isinstance(context, ssl.SSLContext) and context.check_hostname
    assert security == {
        "security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_plain_username": "me", "sasl_plain_password": "s3cret",
    }  # fmt: skip
    settings = stream_settings(config)
    given = options(settings)["broker_credentials"]
    assert credentials_to_aiokafka_auth(given) == {**security, "ssl_context": settings.security["ssl_context"]}
    assert "s3cret" not in f"{config!r}{config.shown()}{settings!r}"


def test_what_javas_clients_get(tmp_path: Path) -> None:
    make_authority(tmp_path).issue("client", "DNS:client")
    files = "ssl.ca.location: ca.pem, ssl.certificate.location: client.pem, ssl.key.location: client.key"
    section = (
        "bootstrap_servers: a:1, security.protocol: SASL_SSL, " + files + ", " + LOGIN.replace("s3cret", "'a\"b\\'")
    )
    java = loaded(tmp_path, section).kafka.java
    assert java.pop("sasl.jaas.config") == (
        'org.apache.kafka.common.security.scram.ScramLoginModule required username="me" password="a\\"b\\\\";'
    )
    assert java.pop("ssl.keystore.key").startswith("-----BEGIN PRIVATE KEY-----")
    assert java.pop("ssl.keystore.certificate.chain").startswith("-----BEGIN CERTIFICATE-----")
    assert java == {
        "security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-256", "ssl.keystore.type": "PEM",
        "ssl.truststore.type": "PEM", "ssl.truststore.location": str(tmp_path / "ca.pem"),
        "ssl.endpoint.identification.algorithm": "https",
    }  # fmt: skip
    assert loaded(tmp_path, "bootstrap_servers: a:1").kafka.java == {}


def test_without_a_login(tmp_path: Path) -> None:
    make_authority(tmp_path)
    plain = loaded(tmp_path, "bootstrap_servers: a:1")
    assert plain.kafka.security == {} and options(stream_settings(plain))["broker_credentials"] is None
    section = "bootstrap_servers: a:1, security.protocol: SSL, ssl.ca.location: ca.pem, "
    secured = loaded(tmp_path, f"{section}ssl.endpoint.identification.algorithm: none")
    assert set(secured.kafka.security) == {"security_protocol", "ssl_context"}
    assert not secured.kafka.security["ssl_context"].check_hostname
    assert isinstance(options(stream_settings(secured))["broker_credentials"], faust.SSLCredentials)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ("security.protocol: SASL_SSL", "needs sasl.mechanism, sasl.username, sasl.password"),
        ("security.protocol: SASL_SSL, sasl.mechanism: GSSAPI", "'GSSAPI' is not one of PLAIN, SCRAM-SHA-256"),
        ("security.protocol: TLS", "'TLS' is not one of PLAINTEXT, SSL"),
        (LOGIN, "counts with security.protocol SASL_SSL only"),
        ("ssl.ca.location: a", "counts with security.protocol SSL or SASL_SSL only"),
        ("security.protocol: SSL, ssl.key.location: a", "belong together"),
        ("security.protcol: SSL", "did you mean security.protocol?"),
        ("security_protocol: SSL", "did you mean security.protocol?"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, section: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, f"bootstrap_servers: a:1, {section}")
    assert told in str(error.value) and "ctxpipe.yaml:2: " in str(error.value) and "s3cret" not in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    config = loaded(tmp_path, "bootstrap_servers: a:1, security.protocol: SSL, ssl.ca.location: no.pem")
    with pytest.raises(ConfigError, match=r"no\.pem: can't be used"):
        stream_settings(config)
