"""The section `redis`: logins and TLS, and what doesn't fit together."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.config import load
from pipeline.core.errors import ConfigError

KAFKA = 'kafka: {bootstrap_servers: "127.0.0.1:9092"}\n'


def test_secrets_come_from_files_and_are_shown_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password").write_text("s3cret/€@\n")
    monkeypatch.delenv("REDIS_PASSWORD", raising=False)
    monkeypatch.setenv("REDIS_PASSWORD_FILE", str(tmp_path / "password"))
    path = tmp_path / "ctxpipe.yaml"
    path.write_text(
        KAFKA + 'redis: {url: "rediss://host:6380/0", username: reader, password: "${REDIS_PASSWORD}", ca: ca.pem}'
    )
    config = load(path)
    assert config.redis.password is not None and config.redis.password.get_secret_value() == "s3cret/€@"
    assert config.redis.secured and config.redis.folder == tmp_path
    assert "s3cret" not in f"{config!r}{config.shown()}"


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ("url: redis://host:6379/0, ca: ca.pem", "write rediss:// in url"),
        ("url: rediss://host:6379/0, certificate: a.pem", "'certificate' and 'key' belong together"),
        ("url: redis://:x@host:6379/0, password: y", "has a login, and so has the section"),
        ("url: redis://host:6379/0, username: y", "'username' without 'password'"),
        ("url: redis://host:6379/0, cafile: y", "unknown key"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, section: str, told: str) -> None:
    path = tmp_path / "ctxpipe.yaml"
    path.write_text(f"{KAFKA}redis: {{{section}}}\n")
    with pytest.raises(ConfigError) as error:
        load(path)
    assert told in str(error.value) and "ctxpipe.yaml:2: " in str(error.value)
