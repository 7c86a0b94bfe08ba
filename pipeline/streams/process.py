"""One worker process: `python -m pipeline.streams.process --config PATH CONTEXT`, started by the supervisor. With
`--space` it embeds for one space; with `--begin-space` it only says which space the stored spec asks for."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import msgspec

from pipeline.core.collector import settle
from pipeline.core.errors import CtxpipeError
from pipeline.core.health import Health, serve
from pipeline.core.logging import configure, set_level
from pipeline.core.reloading import Reloading, on_hangup
from pipeline.streams.child_reports import report_to
from pipeline.streams.ending import end_late, end_process
from pipeline.streams.worker_health import watch_worker

PARENT_CHECK_S = 1.0
SWITCH_INTERVAL_S = 0.0005
YOUNG_MAX = 200_000
"""A batch makes thousands of short-lived values without cycles; looking for some every 700 cost a fifth of the time,
every 50,000 still a tenth of a large batch's."""

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs until SIGTERM or SIGINT, or until the process that started it is gone. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="pipeline.streams.process")
    parser.add_argument("--config", required=True)
    parser.add_argument("--composition", type=msgspec.json.decode, default={}, help="section path: copy or link")
    parser.add_argument("--metrics-port", type=int)
    parser.add_argument("--number", type=int, default=1, help="among the processes of this worker")
    parser.add_argument("--report-to", type=int, help="the descriptor that the supervisor hears from us through")
    parser.add_argument("--version", type=int, help="of the context, for spaces; default: the file's")
    parser.add_argument("--space", help="embed for this space")
    parser.add_argument("--begin-space", action="store_true", help="register the space of the spec and print its name")
    parser.add_argument("context")
    chosen = parser.parse_args(arguments)
    configure(context=chosen.context, **({} if chosen.space is None else {"space": chosen.space}))
    _use_uvloop()
    # Kafka's thread and the agents' share the interpreter lock: with Python's 5 ms each waits that long for the other.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    from pipeline.core import telemetry
    from pipeline.core.config import load

    try:
        config = load(chosen.config)
        set_level(config.running.level)
        if chosen.begin_space:
            return _begin_space(chosen)
        telemetry.configure("worker" if chosen.space is None else "embedder", os.environ)
        health = Health("worker" if chosen.space is None else "embedder")
        if chosen.report_to is not None:
            report_to(chosen.report_to, health)
        if chosen.metrics_port is not None:
            host = config.running.metrics_host
            port = serve(chosen.metrics_port, health, host)
            logger.info("metrics at http://%s:%d/metrics", host, port)
        app = _app(chosen)
    except CtxpipeError as error:
        logger.critical("%s", error)
        return error.exit_code
    settle(YOUNG_MAX)
    try:
        asyncio.run(run(app, health, Reloading(config)))
    except Exception as error:  # noqa: BLE001 - the end of the process: its threads would keep it alive
        end_process(error)
    telemetry.flush()
    return 0


def _app(chosen: argparse.Namespace) -> Any:
    if chosen.space is not None:
        from pipeline.streams.space_compose import space_app_of_file

        return space_app_of_file(chosen.config, chosen.context, chosen.version, chosen.space)
    from pipeline.streams.compose import app_of_file

    return app_of_file(chosen.config, chosen.context, chosen.composition, chosen.number)


def _begin_space(chosen: argparse.Namespace) -> int:
    """Its name is the only thing on the standard output; nothing where there is no space to begin yet."""
    from pipeline.streams.space_compose import begin_space_of_file

    space = asyncio.run(begin_space_of_file(chosen.config, chosen.context, chosen.version))
    sys.stdout.write(f"{space}\n" if space is not None else "")
    sys.stdout.flush()
    return 0


async def run(app: Any, health: Health | None = None, reload: Reloading | None = None) -> None:
    """Starts the app and stops it in order when asked to. A crash inside Faust ends the process without a commit."""
    with nullcontext() if reload is None else on_hangup(reload):
        await _run(app, health or Health("worker"))


async def _run(app: Any, health: Health) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    watch_worker(app, health)
    health.beats()
    health.started()
    starting = asyncio.ensure_future(app.start())
    crashed = asyncio.ensure_future(app._crashed.wait())
    asked = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(_until_orphaned(os.getppid()))]
    await asyncio.wait({starting, crashed, *asked}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        await asyncio.wait({crashed, *asked}, return_when=asyncio.FIRST_COMPLETED)
    if crashed.done():
        end_process(app.crash_reason or RuntimeError("Faust crashed"))
    health.stopping()
    # It counts until the process is gone: threads and executors have their own ideas of an end.
    end_late(app.stream_settings.drain_s)
    await app.stop()
    for task in (starting, crashed, *asked):
        task.cancel()


async def _until_orphaned(parent: int) -> None:
    while os.getppid() == parent:  # noqa: ASYNC110 - nobody tells a process that its parent is gone
        await asyncio.sleep(PARENT_CHECK_S)


def _use_uvloop() -> None:
    try:
        import uvloop
    except ImportError:
        return
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # Faust leaves threads behind that Python would wait for; everything of ours is stopped and flushed.
    os._exit(code)
