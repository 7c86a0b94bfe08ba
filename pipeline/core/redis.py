"""Where Redis is and how to log in, as `ctxpipe.yaml` says it: the section `redis`."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, PrivateAttr, SecretStr, field_validator, model_validator

from pipeline.core.section import ConfigPart


class RedisConfig(ConfigPart):
    """`url` may hold a user and a password, and is left out of every representation; `username` and `password` need no
    escaping. `ca`, `certificate` and `key` are PEM files, relative to this file, for rediss://; without `ca` the
    machine's own authorities count."""

    url: str = Field(repr=False, description="redis://[user:password@]host:port/database, rediss:// with TLS")
    replica_url: str | None = Field(default=None, repr=False, description="a read-only copy, for lookups alone")
    cluster: bool = False
    prefix: str = Field(default="ctxpipe", pattern=r"^[A-Za-z0-9_.:-]+$", max_length=60)
    username: str | None = Field(default=None, min_length=1)
    password: SecretStr | None = Field(default=None, min_length=1)
    ca: str | None = Field(default=None, min_length=1)
    certificate: str | None = Field(default=None, min_length=1)
    key: str | None = Field(default=None, min_length=1)
    key_password: SecretStr | None = Field(default=None, min_length=1)

    _folder: Path = PrivateAttr(default=Path())

    @property
    def folder(self) -> Path:
        """Where relative paths start: the folder of the file."""
        return self._folder

    @property
    def secured(self) -> bool:
        return self.url.startswith("rediss://")

    @field_validator("url", "replica_url")
    @classmethod
    def _scheme(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("is no Redis address; write redis://host:port/0, or rediss:// with TLS")
        try:
            parts = urlsplit(value)
            fits = value.startswith("unix://") or bool(parts.hostname and parts.port != 0)
        except ValueError:
            fits = False
        if not fits:
            raise ValueError("has no host and port that can be read; write redis://host:port/0, with % as %25 in it")
        database = parts.path.strip("/")
        if not value.startswith("unix://") and database and not database.isdecimal():
            # It is not shown: where a password holds an unescaped slash, this is the rest of it.
            raise ValueError("the database after host:port is no number; write redis://host:port/0, and / as %2F")
        return value

    @model_validator(mode="after")
    def _together(self) -> RedisConfig:
        files = [name for name in ("ca", "certificate", "key") if getattr(self, name) is not None]
        if files and not self.secured:
            raise ValueError(f"{files[0]} is for TLS, and the address is not; write rediss:// in url")
        if self.cluster and self.replica_url is not None:
            raise ValueError("'replica_url' is for a single Redis; a cluster's own replicas are not asked")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("'certificate' and 'key' belong together")
        parts = urlsplit(self.url)
        if (parts.password and self.password) or (parts.username and self.username):
            raise ValueError("the address has a login, and so has the section; take one of them out")
        if self.username is not None and self.password is None and not parts.password:
            raise ValueError("'username' without 'password'; write password: ${REDIS_PASSWORD}")
        return self
