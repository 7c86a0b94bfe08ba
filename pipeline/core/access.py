"""Who may read what, as `ctxpipe.yaml` says it: the section `access`, and TLS of `serve`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from pipeline.core.section import ConfigPart

SCOPE = re.compile(r"(bundles|search):read(:[a-z][a-z0-9_]{0,59})?|metrics:read|tenants:all")
SCOPES_SHOWN = "bundles:read, search:read, both also with :CONTEXT after them, metrics:read, tenants:all"
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]  # none with a shared secret: who can check those could also make them
_LOCAL = ("localhost", "127.0.0.1", "::1")


def check_scope(text: str) -> str:
    """Raises ValueError for what is no scope."""
    if SCOPE.fullmatch(text) is None:
        raise ValueError(f"{text!r} is no scope; known are {SCOPES_SHOWN}")
    return text


Scope = Annotated[str, AfterValidator(check_scope)]


class Grant(ConfigPart):
    """What a holder may do. `fields`: context → paths of its bundles that are shown; contexts that are not named are
    shown whole. `tenant`: whose bundles, where a context keeps tenants apart."""

    tenant: str | None = Field(default=None, min_length=1, max_length=500)
    scopes: list[Scope] = Field(default_factory=list, max_length=100)
    fields: dict[str, list[str]] = Field(default_factory=dict, max_length=100)


class JwtConfig(ConfigPart):
    """Tokens that an identity provider signs. A token has to have `exp`, `iss` and `aud`; its scopes and tenant come
    from the claims named here. Keys are read anew after `keys_age_s_max`, and when a token names an unknown one."""

    issuer: str = Field(min_length=1)
    audience: str = Field(min_length=1)
    jwks_url: str | None = None
    jwks_file: str | None = Field(default=None, description="relative to this file")
    algorithms: list[Algorithm] = Field(default=["RS256", "ES256"], min_length=1)
    name_claim: str = "sub"
    tenant_claim: str = "tenant"
    scope_claim: str = Field(default="scope", description="words with blanks between them, or a list")
    fields_claim: str | None = Field(default=None, description="an object: context → list of paths")
    leeway_s: float = Field(default=10, ge=0, le=300)
    keys_age_s_max: float = Field(default=300, ge=1, le=86_400)
    timeout_s: float = Field(default=5, gt=0, le=60)

    @field_validator("jwks_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if not parts.hostname or parts.scheme not in ("https", "http"):
            raise ValueError("is no address; write https://host/path")
        if parts.scheme == "http" and parts.hostname not in _LOCAL:
            raise ValueError("keys that come unprotected can be anybody's; write https://")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> JwtConfig:
        if (self.jwks_url is None) == (self.jwks_file is None):
            raise ValueError("give one of 'jwks_url' and 'jwks_file', where the issuer's keys are")
        return self


class MtlsConfig(ConfigPart):
    """Certificates as credentials: `clients` maps a name in the certificate (`URI:spiffe://…`, `DNS:…`, `email:…`) to
    what its holder may. The certificate is the connection's own (`serve: tls: client_ca`), or what a proxy says of its
    client in `header`, which is believed from `proxies` only (networks)."""

    clients: dict[str, Grant] = Field(min_length=1)
    header: str | None = Field(default=None, pattern=r"^[A-Za-z0-9-]+$", description="e.g. x-forwarded-client-cert")
    proxies: list[str] = Field(default_factory=list, description="networks, e.g. 10.0.0.0/8")

    @field_validator("clients")
    @classmethod
    def _names(cls, value: dict[str, Grant]) -> dict[str, Grant]:
        for name in value:
            if not name.startswith(("URI:", "DNS:", "email:")):
                raise ValueError(f"{name!r} is no name of a certificate; write URI:…, DNS:… or email:…")
        return value

    @field_validator("proxies")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        for network in value:
            try:
                ip_network(network)
            except ValueError as error:
                raise ValueError(f"{network!r} is no network: {error}") from None
        return value

    @model_validator(mode="after")
    def _both(self) -> MtlsConfig:
        if (self.header is None) != (not self.proxies):
            raise ValueError("'header' and 'proxies' belong together: a header is believed from known proxies only")
        return self


class AccessConfig(ConfigPart):
    """With any of `keys_file`, `jwt` and `mtls`, nothing is read without a credential. `audit_secret` keys the hashes
    of bundle keys in audit lines; without it they can be compared within one run of a process only."""

    keys_file: str | None = Field(default=None, min_length=1, description="of ctxpipe key; relative to this file")
    jwt: JwtConfig | None = None
    mtls: MtlsConfig | None = None
    audit_secret: SecretStr | None = Field(default=None, min_length=16)

    @property
    def configured(self) -> bool:
        return self.keys_file is not None or self.jwt is not None or self.mtls is not None


class TlsConfig(ConfigPart):
    """PEM files, relative to this file. `client_ca` signs the certificates of clients, which then must have one unless
    `client_certificate` is optional."""

    certificate: str = Field(min_length=1)
    key: str = Field(min_length=1)
    key_password: SecretStr | None = None
    client_ca: str | None = None
    client_certificate: Literal["required", "optional"] = "required"


def access_mistakes(access: AccessConfig, tls: TlsConfig | None) -> Iterator[tuple[tuple[str, ...], str]]:
    """(where, what) of sections that don't fit together."""
    mtls = access.mtls
    if mtls is not None and mtls.header is None and (tls is None or tls.client_ca is None):
        yield (
            ("access", "mtls"),
            "nothing shows clients' certificates: give serve: tls: client_ca, or header and proxies",
        )
