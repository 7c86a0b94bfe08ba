"""`ctxpipe key`: API keys of the lookup service, in the file that `access: keys_file` names."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands._durations import duration_s

if TYPE_CHECKING:
    from pipeline.lookup.api_keys import KeyList, StoredKey

Decorated = Callable[..., Any]


def _file_options(function: Decorated) -> Decorated:
    config = click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True)
    file = click.option(
        "--file", type=click.Path(path_type=Path), help="Of keys; default: the one of the configuration."
    )
    return config(file(function))


@click.group()
def command() -> None:
    """API keys of the lookup service: make, list, revoke. Servers take changes over within a second or two."""


@command.command()
@click.option("--name", help="Whose key it is; stands in audit lines.")
@click.option("--tenant", help="Whose bundles it reads, in contexts that keep tenants apart.")
@click.option(
    "--scope", "scopes", multiple=True, metavar="SCOPE",
    help="What it may do; repeat it. bundles:read and search:read, also with :CONTEXT after them, metrics:read, "
    "tenants:all.",
)  # fmt: skip
@click.option(
    "--fields", multiple=True, metavar="CONTEXT:PATH,PATH",
    help="Shows only these fields of a context's bundles; repeat it for other contexts.",
)  # fmt: skip
@click.option("--expires", metavar="DURATION", help="From now, as in 90d, 12h, 30m; default: never.")
@click.option("--replaces", metavar="ID", help="Takes over name, tenant, scopes and fields of this key.")
@click.option(
    "--overlap", default="7d", show_default=True, metavar="DURATION",
    help="With --replaces: so long the old key works on; 0s ends it at once.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@_file_options
def new(
    name: str | None, tenant: str | None, scopes: tuple[str, ...], fields: tuple[str, ...], expires: str | None,
    replaces: str | None, overlap: str, as_json: bool, config_path: str, file: Path | None,
) -> None:  # fmt: skip
    """Make a key and show it, this once: the file holds a hash of it."""
    from pipeline.lookup.api_keys import KeyList, StoredKey, make_key

    path, now_s = _path(config_path, file), int(time.time())
    key_id, text, digest = make_key()
    with _changing(path, missing=True) as (keys, write):
        old = None if replaces is None else _named(keys, replaces, path)
        made = StoredKey(
            id=key_id,
            name=name or (old.name if old else ""),
            digest=digest,
            created_s=now_s,
            tenant=tenant or (old.tenant if old else None),
            scopes=scopes or (old.scopes if old else ()),
            fields=_fields(fields) or (old.fields if old else {}),
            expires_s=None if expires is None else now_s + duration_s("--expires", expires),
            replaces=replaces,
        )
        _refuse(made)
        kept = keys.keys
        if old is not None:
            kept = _with(kept, old, now_s + duration_s("--overlap", overlap))
        write(KeyList((*kept, made)))
    if as_json:
        click.echo(_json({"id": key_id, "key": text, **_shown(made, now_s)}))
        return
    click.echo(text)
    click.echo(f"key {key_id} of {made.name}, in {path}. It is shown this once; send it as x-api-key.", err=True)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@_file_options
def list_keys(as_json: bool, config_path: str, file: Path | None) -> None:
    """Show the keys, without what they open with."""
    from pipeline.lookup.api_keys import read_keys

    now_s = time.time()
    shown = [_shown(key, now_s) for key in read_keys(_path(config_path, file)).keys]
    if as_json:
        click.echo(_json({"keys": shown}))
        return
    for key in shown:
        tenant = f"tenant {key['tenant']}" if key["tenant"] else "no tenant"
        ends = f", expires {key['expires']}" if key["expires"] and key["state"] == "usable" else ""
        fields = "".join(f", {context}: {','.join(paths)}" for context, paths in key["fields"].items())
        scopes = " ".join(key["scopes"])
        click.echo(f"{key['id']}  {key['state']:<8}  {key['name']}  {tenant}  {scopes}{fields}{ends}")


@command.command()
@click.argument("key_id", metavar="ID")
@_file_options
def revoke(key_id: str, config_path: str, file: Path | None) -> None:
    """End a key at once."""
    import msgspec

    from pipeline.lookup.api_keys import KeyList

    path, now_s = _path(config_path, file), int(time.time())
    with _changing(path, missing=False) as (keys, write):
        old = _named(keys, key_id, path)
        ended = old if old.revoked_s is not None else msgspec.structs.replace(old, revoked_s=now_s)
        write(KeyList(tuple(ended if key is old else key for key in keys.keys)))
    click.echo(f"key {old.id} of {old.name} is revoked", err=True)


@contextmanager
def _changing(path: Path, missing: bool) -> Iterator[tuple[KeyList, Callable[[KeyList], None]]]:
    """One at a time: two people who make keys at once both get theirs."""
    import fcntl

    from pipeline.core.errors import ConfigError
    from pipeline.lookup.api_keys import KeyList, read_keys, write_keys

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("a")
    except OSError as error:
        raise ConfigError([f"{path}: the keys can't be written: {error.strerror or error}"]) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = KeyList() if missing and not path.exists() else read_keys(path)
        yield keys, lambda changed: write_keys(path, changed)


def _path(config_path: str, file: Path | None) -> Path:
    from pipeline.core.config import load
    from pipeline.core.errors import ConfigError

    if file is not None:
        return file
    config = load(config_path)
    if config.access.keys_file is None:
        raise ConfigError([f"{config.path}: no file of keys; write access: {{keys_file: keys.json}}, or give --file"])
    return config.path.parent / config.access.keys_file


def _named(keys: KeyList, key_id: str, path: Path) -> StoredKey:
    from pipeline.core.errors import ConfigError

    found = keys.find(key_id)
    if found is None:
        raise ConfigError([f"{path}: no key {key_id!r}; ctxpipe key list shows them"])
    return found


def _with(keys: tuple[StoredKey, ...], old: StoredKey, ends_s: int) -> tuple[StoredKey, ...]:
    """The old key ends then, unless it ends earlier anyway."""
    import msgspec

    ends_s = ends_s if old.expires_s is None else min(ends_s, old.expires_s)
    return tuple(msgspec.structs.replace(key, expires_s=ends_s) if key is old else key for key in keys)


def _refuse(made: StoredKey) -> None:
    """Everything that is wrong with it, at once."""
    from pipeline.core.access import check_scope
    from pipeline.core.errors import ConfigError

    mistakes = [] if made.name.strip() else ["--name is missing: whose key is it?"]
    if not made.scopes:
        mistakes.append("--scope is missing: a key without scopes opens nothing; write --scope bundles:read")
    for scope in made.scopes:
        try:
            check_scope(scope)
        except ValueError as error:
            mistakes.append(f"--scope {error}")
    if mistakes:
        raise ConfigError(mistakes)


def _fields(texts: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    from pipeline.core.errors import ConfigError

    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        context, colon, paths = text.partition(":")
        named = tuple(path.strip() for path in paths.split(",") if path.strip())
        if not colon or not context or not named:
            raise ConfigError([f"--fields {text!r}: write CONTEXT:PATH,PATH, e.g. flight:id,plane.year"])
        found[context] = (*found.get(context, ()), *named)
    return found


def _shown(key: StoredKey, now_s: float) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "tenant": key.tenant,
        "scopes": list(key.scopes),
        "fields": {context: list(paths) for context, paths in key.fields.items()},
        "state": key.state(now_s),
        "created": _moment(key.created_s),
        "expires": _moment(key.expires_s),
        "revoked": _moment(key.revoked_s),
        "replaces": key.replaces,
    }


def _moment(time_s: int | None) -> str | None:
    from datetime import UTC, datetime

    return None if time_s is None else datetime.fromtimestamp(time_s, UTC).isoformat().replace("+00:00", "Z")


def _json(value: Any) -> str:
    import json

    return json.dumps(value)
