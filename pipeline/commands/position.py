"""`ctxpipe position`: where a source stands, as a token that a lookup takes to have seen at least that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from schemas.position import SourcePosition


@click.command()
@click.argument("source")
@click.option("--lsn", metavar="LSN", help="Of Postgres, as 16/B374D848: taken after the commit; default: now.")
@click.option("--time-us", type=click.IntRange(0, 2**63 - 1), metavar="MICROSECONDS",
              help="Of Cassandra and Scylla, since 1970 UTC: when a write was acknowledged; default: now.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="A JSON object with what is in the token.")
@click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True)
def command(source: str, lsn: str | None, time_us: int | None, as_json: bool, config_path: str) -> None:
    """Print a token for everything that SOURCE has committed by now.

    Give it to a lookup as `position` (a parameter of the HTTP interface): the lookup waits inside its budget until all
    of that is in the bundles, or says that it may not be. Programs make tokens of their own writes by
    schemas.position.token_of_lsn and token_of_write_time.
    """
    import asyncio
    import json

    from schemas.position import lsn_text, token_of

    position = asyncio.run(_position(source, lsn, time_us, config_path))
    if not as_json:
        click.echo(token_of(position))
        return
    shown: dict[str, object] = {"source": position.source, "position": token_of(position)}
    if position.kind == "lsn":
        shown |= {"lsn": lsn_text(position.value), "cluster": position.cluster or None}
    else:
        shown["time_us"] = position.value
    click.echo(json.dumps(shown))


async def _position(source: str, lsn: str | None, time_us: int | None, config_path: str) -> SourcePosition:
    from connectors.write_positions import write_position
    from pipeline.commands._sources import configured_sources
    from pipeline.core.clock import SystemClock
    from pipeline.core.config import load
    from pipeline.core.errors import ConfigError
    from schemas.errors import DecodeError
    from schemas.position import lsn_of

    try:
        number = None if lsn is None else lsn_of(lsn)
    except DecodeError as error:
        raise ConfigError([f"--lsn: {error}"]) from None
    (configured,) = configured_sources(load(config_path), [source])
    return await write_position(configured, number, time_us, SystemClock())
