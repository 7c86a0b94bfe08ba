"""The slot of a source: made once, and examined at every start, because a slot that moved without us or a server that
is not the one we know means a gap, and a gap is never passed over in silence.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from typing import Any

import msgspec

from connectors.postgres.catalog import Catalog
from connectors.postgres.config import PostgresConfig
from connectors.postgres.errors import SlotInUse, mapped_errors
from connectors.postgres.server import Connection, lsn_number, lsn_text, quote_name, reader_of
from connectors.source import Position
from pipeline.core.errors import EnvironmentProblem, PositionLost

CREATING = "creating"
STREAMING = "streaming"
"""The two states of a position."""

RESET = "Start over with: ctxpipe connect {source} --reset (new slot, all rows are read again, deleted rows vanish)"


class Identity(msgspec.Struct, frozen=True):
    """Which server this is and where its log ends."""

    system: str
    timeline: int
    lsn: int


class Slot(msgspec.Struct, frozen=True):
    """A row of pg_replication_slots. `reader_pid` is the server process that serves its reader, 0 for none."""

    plugin: str
    database: str
    reader_pid: int
    confirmed_lsn: int
    restart_lsn: int
    state: str


async def identify(connection: Connection, where: str) -> Identity:
    """`connection` speaks the replication protocol."""
    with mapped_errors(where):
        row: Any = await (await connection.execute("IDENTIFY_SYSTEM")).fetchone()
    return Identity(str(row[0]), int(row[1]), lsn_number(row[2]))


async def find_slot(catalog: Catalog, name: str) -> Slot | None:
    rows = await catalog.rows(_SLOT, name)
    if not rows:
        return None
    plugin, database, pid, confirmed, restart, state = rows[0]
    return Slot(
        plugin or "",
        database or "",
        pid or 0,
        lsn_number(confirmed or "0/0"),
        lsn_number(restart or "0/0"),
        state or "lost",
    )


async def create_slot(connection: Connection, name: str, where: str) -> tuple[int, str]:
    """Creates the slot and exports its snapshot, which lives until `connection` does anything else.

    Returns the LSN that the slot starts at and the snapshot's name.
    """
    with mapped_errors(where):
        cursor = await connection.execute(
            f"CREATE_REPLICATION_SLOT {quote_name(name)} LOGICAL pgoutput (SNAPSHOT 'export')".encode()
        )
        row: Any = await cursor.fetchone()
    return lsn_number(row[1]), str(row[2])


async def drop_slot(catalog: Catalog, name: str) -> None:
    """Drops the slot if it is there; raises SlotInUse while somebody reads from it."""
    if await find_slot(catalog, name) is not None:
        await catalog.rows("SELECT pg_drop_replication_slot(%s)", name)


async def require_free(catalog: Catalog, config: PostgresConfig) -> None:
    """Waits a bounded time for a reader that has died or is just leaving; refuses at once beside a living one.

    Raises EnvironmentProblem that names the other reader.
    """
    deadline = asyncio.get_running_loop().time() + config.slot_wait_s
    while True:
        slot = await find_slot(catalog, config.slot)
        if slot is None or not slot.reader_pid:
            return
        about = await catalog.rows(_READER, slot.reader_pid)
        name, address, since = about[0] if about else ("", "", "")
        reader = reader_of(name)
        living = reader is not None and reader[0] == socket.gethostname()[:24] and _lives(reader[1])
        if living or asyncio.get_running_loop().time() >= deadline:
            who = f"process {reader[1]} on {reader[0]}" if reader else f"'{name}' from {address or 'this machine'}"
            raise EnvironmentProblem(
                f"The slot {config.slot} of {catalog.server.where} is read by {who} since {since}: two connectors on "
                "one slot would take changes from each other. Stop the other one, or give this source another slot "
                f"(sources.{config.name}.slot)."
            )
        await asyncio.sleep(0.2)


def _lives(pid: int) -> bool:
    if pid == os.getpid():
        return False  # a connection of ours that is just being closed
    with suppress(ProcessLookupError):
        with suppress(PermissionError):
            os.kill(pid, 0)
        return True
    return False


async def require_none(catalog: Catalog, config: PostgresConfig) -> None:
    """Before the first start. Raises PositionLost when the slot is there already."""
    if await find_slot(catalog, config.slot) is not None:
        raise PositionLost(
            f"{catalog.server.where} has the slot {config.slot} already, but no position is stored for source "
            f"{config.name}: the positions topic was lost, or the slot belongs to somebody else. Give the source "
            f"another slot, or take this one over. {RESET.format(source=config.name)}"
        )


async def require_position(
    catalog: Catalog, connection: Connection, config: PostgresConfig, position: Position
) -> Identity:
    """Raises PositionLost, with what happened and what to do, unless the server can go on exactly at `position`."""
    where, lsn = catalog.server.where, int(position["lsn"])
    identity = await identify(connection, where)
    mend = RESET.format(source=config.name)
    if position["system"] != identity.system:
        raise PositionLost(
            f"{where} is another server than the one we read before (system identifier {identity.system}, ours is "
            f"{position['system']}). Point the dsn back, or accept the new server. {mend}"
        )
    if position["timeline"] != identity.timeline:
        await _require_history(connection, identity, position, where, mend)
    if lsn > identity.lsn:
        raise PositionLost(
            f"{where} ends at {lsn_text(identity.lsn)}, before our position {lsn_text(lsn)}: it was restored from a "
            f"backup or failed over to a server that lacks the last changes, which are in Kafka already. {mend}"
        )
    if position.get("slot", config.slot) != config.slot:
        raise PositionLost(
            f"The position was reached with slot {position['slot']}, the source is now set to {config.slot}, which "
            f"does not know it. Set sources.{config.name}.slot back to {position['slot']}. Otherwise: {mend}"
        )
    slot = await find_slot(catalog, config.slot)
    if slot is None:
        raise PositionLost(f"The slot {config.slot} of {where} is gone: changes since our position are lost. {mend}")
    _require_slot(slot, config, catalog.server.database, lsn, where, mend)
    return identity


def _require_slot(slot: Slot, config: PostgresConfig, database: str, lsn: int, where: str, mend: str) -> None:
    if slot.plugin != "pgoutput" or slot.database != database:
        raise PositionLost(
            f"The slot {config.slot} of {where} is not ours: plugin {slot.plugin}, database {slot.database}. {mend}"
        )
    if slot.state == "lost":
        raise PositionLost(
            f"{where} has given up the slot {config.slot}: the log it needed grew beyond max_slot_wal_keep_size. "
            f"Raise that, keep the connector running. {mend}"
        )
    if slot.confirmed_lsn > lsn:
        raise PositionLost(
            f"The slot {config.slot} of {where} was moved to {lsn_text(slot.confirmed_lsn)} by somebody else; our "
            f"position is {lsn_text(lsn)}, changes between the two would be skipped. {mend}"
        )


async def _require_history(
    connection: Connection, identity: Identity, position: Position, where: str, mend: str
) -> None:
    """After a promotion: our position must lie before the point where the new timeline left ours."""
    with mapped_errors(where):
        row: Any = await (await connection.execute(f"TIMELINE_HISTORY {identity.timeline}".encode())).fetchone()
    content = row[1].decode() if isinstance(row[1], bytes) else str(row[1])
    for line in content.splitlines():
        fields = line.split()
        if fields and fields[0] == str(position["timeline"]):
            if int(position["lsn"]) <= lsn_number(fields[1]):
                return
            raise PositionLost(
                f"{where} was promoted at {fields[1]} without the changes up to our position "
                f"{lsn_text(int(position['lsn']))}, which are in Kafka already. {mend}"
            )
    raise PositionLost(f"{where} is on timeline {identity.timeline}, which does not come from ours. {mend}")


async def open_slot(catalog: Catalog, config: PostgresConfig, attempt: Any) -> None:
    """Runs `attempt` again while the slot is held by a reader that is just leaving."""
    while True:
        await require_free(catalog, config)
        try:
            await attempt()
        except SlotInUse:
            await asyncio.sleep(0.1)
        else:
            return


_SLOT = """
SELECT plugin::text, database::text, active_pid, confirmed_flush_lsn::text, restart_lsn::text, wal_status
FROM pg_replication_slots WHERE slot_name = %s AND slot_type = 'logical'
"""
_READER = """
SELECT application_name, client_addr::text, to_char(backend_start, 'YYYY-MM-DD HH24:MI:SS')
FROM pg_stat_activity WHERE pid = %s
"""
