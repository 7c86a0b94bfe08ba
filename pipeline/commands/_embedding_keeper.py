"""Keeps the embedding spaces of one context fed and judged: a process beside the workers, started by their supervisor.

`python -m pipeline.commands._embedding_keeper --config PATH CONTEXT`. It begins the space that the stored spec asks
for, runs a process for every space in use, and asks again and again what is to happen next (`settle`).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pipeline.commands._spaces import OpenSpaces, settle
from pipeline.core.clock import SystemClock
from pipeline.core.errors import CtxpipeError, Retryable
from pipeline.core.health import Health
from pipeline.core.logging import configure, set_level
from pipeline.core.reloading import Reloading, hears_hangups
from pipeline.stores.redis_store import Stores, context_settings, open_stores
from pipeline.streams.backoff import Backoff
from pipeline.streams.child_reports import report_to
from pipeline.streams.supervisor import MARGIN_S, Place, Supervisor

if TYPE_CHECKING:
    from pipeline.core.config import Config
    from schemas.context import ContextSpec, Embedding

LOOK_EVERY_S = 0.25
SPACES_KNOWN_FOR_S = 1.0
SETTLE_EVERY_S = 2.0
BEGIN_LONGEST_WAIT_S = 60.0
PARENT_CHECK_S = 1.0
METRICS_PORTS = 4
"""A context has at most three spaces in use; one that ends and one that begins overlap."""

logger = logging.getLogger("ctxpipe.spaces")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs until SIGTERM or SIGINT, or until the process that started it is gone. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="pipeline.commands._embedding_keeper")
    parser.add_argument("--config", required=True)
    parser.add_argument("--metrics-port", type=int, help="of the first space's process; the others have the next")
    parser.add_argument("--report-to", type=int, help="the descriptor that the supervisor hears from us through")
    parser.add_argument("context")
    chosen = parser.parse_args(arguments)
    configure(context=chosen.context)
    from pipeline.core.config import load, load_context_files

    health = Health("embedding keeper")
    if chosen.report_to is not None:
        report_to(chosen.report_to, health)
    try:
        config = load(chosen.config)
        set_level(config.running.level)
        file = load_context_files(config)[chosen.context]
        keeper = Keeper(config, chosen.config, file.spec, file.document.path.parent, chosen.metrics_port)
        asyncio.run(_until_asked(keeper, health, Reloading(config)))
    except CtxpipeError as error:
        logger.critical("%s", error)
        return error.exit_code
    return 0


class Keeper:
    """Of one context version. Nothing that goes wrong with a space ends it: it says what, and tries again."""

    def __init__(
        self, config: Config, config_path: str, spec: ContextSpec, folder: Path, metrics_port: int | None
    ) -> None:
        self._config, self._config_path, self._spec, self._folder = config, config_path, spec, folder
        self._metrics_port = metrics_port
        self._supervisor = Supervisor([], stop_timeout_s=config.running.drain_s + MARGIN_S)
        self._stores: Stores | None = None
        self._wanted: str | None = None
        self._stored: ContextSpec | None = None
        self._told: dict[str, str] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._forever(self._feed, SPACES_KNOWN_FOR_S))
                tasks.create_task(self._forever(self._begin, SETTLE_EVERY_S))
                tasks.create_task(self._forever(self._settle, SETTLE_EVERY_S))
                tasks.create_task(self._supervise())
        finally:
            await asyncio.to_thread(self._supervisor.end_all)
            if self._stores is not None:
                await self._stores.close()

    def watch(self, health: Health) -> None:
        """Inside the event loop: its probes speak for the processes of its spaces."""
        self._supervisor.watch(health)
        health.beats()
        health.started()

    def reload(self, reload: Reloading) -> None:
        """Here and in the processes of the spaces."""
        reload.begin()
        self._supervisor.tell_all(signal.SIGHUP)

    async def _forever(self, step: Callable[[], Awaitable[None]], every_s: float) -> None:
        backoff = Backoff(first_s=every_s, longest_s=BEGIN_LONGEST_WAIT_S)
        while True:
            try:
                await step()
            except CtxpipeError as error:
                self._tell(getattr(step, "__name__", ""), str(error), logging.ERROR)
                await asyncio.sleep(backoff.next_s())
            else:
                backoff.reset()
                await asyncio.sleep(every_s)

    async def _supervise(self) -> None:
        while True:
            self._supervisor.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _feed(self) -> None:
        """Every space in use has a process."""
        stores = await self._opened()
        stored = await stores.serving.definition(self._spec.version)
        self._stored = None if stored is None else stored.spec
        records = await stores.spaces.all()
        wanted: list[Place] = []
        for record in records:
            if record.state != "retired":
                wanted.append(self._place(record.space, wanted))
        self._supervisor.want(wanted)

    async def _begin(self) -> None:
        """The space that the stored spec asks for is registered; asked again when the spec is another."""
        spec, begun = self._stored, self._told.get("begun for")
        if spec is None or spec.embedding is None:
            self._wanted = None
            return
        asked = _deciding(spec.embedding, spec.embedded_template)
        if asked == begun and await self._still_there():
            return
        words = self._command("--begin-space", "--version", str(self._spec.version))
        process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        try:
            output, _ = await process.communicate()
        except asyncio.CancelledError:
            if process.returncode is None:
                process.terminate()
            raise
        if process.returncode != 0 or not output:
            raise Retryable(f"the space that {spec.context} asks for can't begin; what is in its way stands above")
        self._wanted = output.decode().strip()
        self._told["begun for"] = asked
        await self._tell_cost(self._wanted)

    async def _still_there(self) -> bool:
        """A Redis that lost its memory lost the spaces, too."""
        records = await (await self._opened()).spaces.all()
        return any(one.space == self._wanted for one in records)

    async def _settle(self) -> None:
        if self._wanted is None or self._stored is None:
            return
        current = await (await self._opened()).serving.current()
        if current is None or current < self._spec.version:
            # Before it has bundles, an empty space is complete, too.
            built = f"the bundles of version {self._spec.version} are still being built"
            self._tell("settle", f"space {self._wanted} of {self._spec.context}: {built}", logging.INFO)
            return
        spaces = await self._spaces(self._stored)
        step = await settle(spaces, self._wanted)
        if step.do == "promote":
            logger.info("space %s of %s serves now: %s", step.space, self._spec.context, step.reason)
        elif step.do == "note":
            logger.warning("space %s of %s does not take over: %s", step.space, self._spec.context, step.reason)
        else:
            self._tell("settle", f"space {self._wanted} of {self._spec.context}: {step.reason}", logging.INFO)

    async def _spaces(self, stored: ContextSpec) -> OpenSpaces:
        """As pipeline.commands._spaces.open_spaces, on this version and on open stores."""
        spec, ours = stored, self._spec.embedding
        if spec.embedding is not None and ours is not None:
            spec = spec.model_copy(update={"embedding": spec.embedding.model_copy(update={"gate": ours.gate})})
        return OpenSpaces(self._config, spec, self._folder, await self._opened(), SystemClock())

    async def _tell_cost(self, wanted: str) -> None:
        """Before a space is built beside one that knows the texts; for the first one `ctxpipe check` says it."""
        from pipeline.commands._check_embedding import told_estimate
        from pipeline.commands._spaces import definition_of

        spaces = await self._spaces(self._stored or self._spec)
        records = {one.space: one for one in await spaces.records()}
        serving = next((one for one in records.values() if one.state == "serving"), None)
        if serving is not None and wanted in records and records[wanted].state == "candidate":
            found = asdict(await spaces.estimate(records[wanted], serving))
            told = told_estimate(definition_of(records[wanted]).embedding, {**found, "rate_per_s": None})
            text = f"space {wanted} of {self._spec.context} is to be built beside {serving.space}: {told}"
            self._tell("cost", text, logging.INFO)

    async def _opened(self) -> Stores:
        if self._stores is None:
            self._stores = await open_stores(context_settings(self._config, self._spec))
        return self._stores

    def _place(self, space: str, others: Sequence[Place]) -> Place:
        name = f"{self._spec.context}/space {space}"
        for place in self._supervisor.places:
            if place.name == name:
                return place
        words = self._command("--space", space, "--version", str(self._spec.version))
        if self._metrics_port is not None:
            words += ["--metrics-port", str(self._free_port(others))]
        return Place(name, words, vital=False)

    def _free_port(self, others: Sequence[Place]) -> int:
        if not self._metrics_port:
            return 0
        used = {place.command[-1] for place in (*self._supervisor.places, *others)}
        ports = range(self._metrics_port, self._metrics_port + METRICS_PORTS)
        return next((port for port in ports if str(port) not in used), 0)

    def _command(self, *more: str) -> list[str]:
        words = [sys.executable, "-m", "pipeline.streams.process", "--config", self._config_path]
        return [*words, self._spec.context, *more]

    def _tell(self, what: str, text: str, level: int) -> None:
        """Each message once as long as it stays the same."""
        if self._told.get(what) != text:
            self._told[what] = text
            logger.log(level, "%s", text)


def place_of(config_path: str, context: str, metrics_port: int | None) -> Place:
    """How the supervisor of `ctxpipe worker` starts it."""
    words = [sys.executable, "-m", "pipeline.commands._embedding_keeper", "--config", config_path, context]
    if metrics_port is not None:
        words += ["--metrics-port", str(metrics_port)]
    return Place(f"{context}/spaces", words, vital=False)


def _deciding(embedding: Embedding, template: str | None) -> str:
    """All of an embedding that may start another space, as text."""
    shown = embedding.model_dump(mode="json", exclude={"promotion", "gate", "device", "endpoint"})
    return msgspec.json.encode([shown, template], order="sorted").decode()


async def _until_asked(keeper: Keeper, health: Health, reload: Reloading) -> None:
    """SIGHUP goes to the processes of the spaces, too."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    keeper.watch(health)
    if hears_hangups():
        loop.add_signal_handler(signal.SIGHUP, lambda: keeper.reload(reload))
    parent = os.getppid()
    running = asyncio.ensure_future(keeper.run())
    asked = asyncio.ensure_future(stop.wait())
    while not (running.done() or asked.done()) and os.getppid() == parent:
        await asyncio.wait({running, asked}, timeout=PARENT_CHECK_S, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if running.done():
        running.result()
    health.stopping()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


if __name__ == "__main__":
    sys.exit(main())
