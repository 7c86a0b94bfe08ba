"""API keys: made once, kept as hashes in a file, found by their id, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from pipeline.core.access import check_scope
from pipeline.core.errors import ConfigError
from pipeline.lookup.principal import Principal

PREFIX = "ctxpipe"
ID_BYTES, SECRET_BYTES = 6, 32
KEY_CHARACTERS_MAX = 200
FILE_BYTES_MAX = 16 * 1024 * 1024

Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class StoredKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One key as it lies in the file. `digest` is SHA-256 of the secret, which has 256 random bits, so that nothing
    slower is needed. Times are seconds since 1970 UTC; `replaces` is the id of the key that this one takes over from.
    """

    id: str
    name: str
    digest: Digest
    created_s: int
    tenant: str | None = None
    scopes: tuple[str, ...] = ()
    fields: dict[str, tuple[str, ...]] = {}
    expires_s: int | None = None
    revoked_s: int | None = None
    replaces: str | None = None

    def state(self, now_s: float) -> str:
        """usable, revoked or expired."""
        if self.revoked_s is not None and self.revoked_s <= now_s:
            return "revoked"
        return "expired" if self.expires_s is not None and self.expires_s <= now_s else "usable"

    @property
    def principal(self) -> Principal:
        return Principal(self.name, self.tenant, frozenset(self.scopes), self.fields)


class KeyList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file: {"keys": […]}."""

    keys: tuple[StoredKey, ...] = ()

    def find(self, key_id: str) -> StoredKey | None:
        return next((key for key in self.keys if key.id == key_id), None)


def make_key() -> tuple[str, str, str]:
    """(id, the key as its holder sends it, the digest that is kept)."""
    key_id, secret = secrets.token_hex(ID_BYTES), secrets.token_urlsafe(SECRET_BYTES)
    return key_id, f"{PREFIX}_{key_id}_{secret}", _digest(secret)


def is_api_key(text: str) -> bool:
    """Whether a credential is meant to be one of ours, and no token of somebody else."""
    return text.startswith(f"{PREFIX}_")


def verify_key(keys: Mapping[str, StoredKey], text: str, now_s: float) -> tuple[Principal | None, str]:
    """(principal, ""), or None and why, for the log alone. Takes as long for a wrong secret as for the right one."""
    parts = text.split("_", 2)
    if len(text) > KEY_CHARACTERS_MAX or len(parts) != 3 or parts[0] != PREFIX or not text.isascii():
        return None, "malformed key"
    key = keys.get(parts[1])
    same = hmac.compare_digest(_digest(parts[2]), key.digest if key is not None else _NOBODY)
    if key is None:
        return None, "unknown key"
    if not same:
        return None, f"wrong secret for key {key.id}"
    state = key.state(now_s)
    return (key.principal, "") if state == "usable" else (None, f"{state} key {key.id}")


def read_keys(path: Path) -> KeyList:
    """Raises ConfigError for what is no file of keys, and for a file that is not there."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ConfigError([f"{path}: more than {FILE_BYTES_MAX:,} bytes; this is no file of keys"])
        found = msgspec.json.decode(path.read_bytes(), type=KeyList)
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such file of keys; make the first key with ctxpipe key new"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: the keys can't be read: {error.strerror or error}"]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError([f"{path}: this is no file of keys as ctxpipe key writes it: {error}"]) from None
    mistakes = [f"{path}: key {key.id}: {text}" for key in found.keys for text in _scope_mistakes(key)]
    ids = [key.id for key in found.keys]
    mistakes += [f"{path}: key {one} stands there twice" for one in sorted({one for one in ids if ids.count(one) > 1})]
    if mistakes:
        raise ConfigError(mistakes)
    return found


def write_keys(path: Path, keys: KeyList) -> None:
    """All or nothing, readable by its owner alone unless it exists with other rights. Raises ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = path.resolve()
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(keys), indent=2) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, mode)
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError([f"{path}: the keys can't be written: {error.strerror or error}"]) from None


def _scope_mistakes(key: StoredKey) -> list[str]:
    found = []
    for scope in key.scopes:
        try:
            check_scope(scope)
        except ValueError as error:
            found.append(str(error))
    return found


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


_NOBODY = "0" * 64
