"""A pipeline whose embedding workers, replica, Redis and Kafka die while rows change, and what must hold afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg

from deploy.local.redis import RedisServer
from pipeline.commands._search import open_replica
from pipeline.commands._spaces import definition_of, open_spaces
from pipeline.core.config import load
from pipeline.ops.space_digest import SpaceProof
from pipeline.ops.space_promotion import proof_object
from pipeline.streams.compose import context_of_file
from pipeline.streams.space_compose import begin_space
from schemas.digests import KeySetDigest
from schemas.vectors import hash_text
from tests.integration.test_embedding_stage import Library
from tests.support.eventually import eventually
from tests.support.running_pipeline import SOON_MISSED

KEYS = 150
"""More of them than there are books at first; few, so that each is changed often."""
TITLES = [f"{kind} of {place}" for kind in ("maps", "songs", "ghosts") for place in ("the north", "Lisbon", "salt")]
"""Few, so that texts come back to what they were."""
RATE = 100.0
UNTIL_COMPLETE_S = 60.0
SESSION_S = SOON_MISSED["session.timeout.ms"] / 1000


class Feeder:
    """One process that embeds for a space."""

    def __init__(self, shelf: Shelf, space: str, number: int) -> None:
        self._log = shelf.folder / f"feeder-{number}.log"
        words = [sys.executable, "-m", "tests.support.space_worker", str(shelf.config_path), shelf.context, space]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.process.wait()

    def tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])


class Shelf(Library):
    """Books that change all the time. `changes` is used as a context manager."""

    def __init__(self, folder: Path, kafka: str, redis_url: str, dsn: str, seed: int) -> None:
        super().__init__(folder, kafka, redis_url, dsn)
        self.chance = random.Random(seed)
        self.feeders: list[Feeder] = []
        self.between = " by "
        """Of title and author, in the template."""
        self._count = 0

    def begin(self) -> None:
        """Bundles, and nobody who embeds."""
        self.role("connect", self.source)
        self.role("worker", "--role", "bundles")

    def process_of(self, space: str) -> int | None:
        """Of the keeper's process that feeds the space; None while there is none."""
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if str(self.config_path).encode() in words and space.encode() in words:
                    return int(folder.name)
        return None

    async def space(self, instead_of: str | None = None) -> str:
        """Begins the space that the stored spec asks for."""
        config, spec = context_of_file(str(self.config_path), self.context)

        async def look() -> str | None:
            for role in self.roles:
                role.ensure_running()
            return await begin_space(config, spec)

        space = await eventually(look, lambda found: found not in (None, instead_of), timeout_s=60, what="a space")
        assert space is not None
        return space

    def feed(self, space: str) -> Feeder:
        self._count += 1
        feeder = Feeder(self, space, self._count)
        self.feeders.append(feeder)
        return feeder

    def take_away(self, feeder: Feeder) -> None:
        self.feeders.remove(feeder)
        feeder.kill()

    def stop(self) -> None:
        for feeder in self.feeders:
            feeder.send(signal.SIGCONT)
            feeder.kill()
        super().stop()

    async def pause(self, least_s: float, most_s: float) -> None:
        await asyncio.sleep(self.chance.uniform(least_s, most_s))

    async def paused_beyond_its_session(self, feeder: Feeder) -> None:
        feeder.send(signal.SIGSTOP)
        await self.pause(SESSION_S + 1.5, SESSION_S + 3)
        feeder.send(signal.SIGCONT)

    def changes(self) -> Changes:
        return Changes(self.dsn, self.chance.getrandbits(32))

    def expected(self) -> dict[str, str]:
        """Each book's text, by Postgres and `between`."""
        with psycopg.connect(self.dsn) as connection:
            rows = connection.execute(
                "SELECT books.id, title, name FROM books JOIN authors ON authors.id = author_id"
            ).fetchall()
        return {str(key): f"{title}{self.between}{name}" for key, title, name in rows}

    async def check(self, space: str, folder: Path | None = None) -> None:
        """After the changes: all places hold the same texts, which are those of Postgres. `folder`: of the replica
        that was killed; its snapshot is read on."""
        proof = await self.until_proven(space)
        texts = self.expected()
        digest = digest_of({key: hash_text(text) for key, text in texts.items()})
        shown = f"{proof_object(proof)}\nexpected {digest}"
        assert set(proof.digests.values()) == {digest}, shown
        assert (proof.bundles, proof.texts, proof.vectors) == (len(texts),) * 3, shown
        await self.check_replica(space, folder or self.folder / "replica", texts)
        assert (await self.verified())[2] == 0

    async def until_proven(self, space: str) -> SpaceProof:
        expected = digest_of({key: hash_text(text) for key, text in self.expected().items()})
        deadline = time.monotonic() + UNTIL_COMPLETE_S
        while True:
            proof = await self.prove(space)
            if proof.complete and set(proof.digests.values()) == {expected}:
                return proof
            if time.monotonic() > deadline:
                tails = "\n".join(f"== {place.tail()}" for place in [*self.feeders, *self.roles])
                raise AssertionError(f"{proof_object(proof)}\nexpected {expected}\n{tails}")
            await asyncio.sleep(0.5)

    async def check_replica(self, space: str, folder: Path, texts: dict[str, str]) -> None:
        """What a serve with this folder would answer from."""
        config = load(self.config_path)
        spaces = await open_spaces(config, self.context)
        try:
            record = next(one for one in await spaces.records() if one.space == space)
        finally:
            await spaces.close()
        replica = open_replica(config, definition_of(record), record, folder)
        await replica.start()
        running = asyncio.ensure_future(replica.run())
        try:

            async def look() -> bool:
                return replica.caught_up and replica.behind_records == 0 and not replica.texts.pending

            await eventually(look, bool, timeout_s=30, what="the replica has caught up")
            self._compare(replica, texts)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await replica.close()

    def _compare(self, replica: Any, texts: dict[str, str]) -> None:
        from pipeline.embedding.hashing import HashEngine

        hashes = {key: hash_text(text) for key, text in texts.items()}
        ever = {str(key) for key in range(1, KEYS + 1)}
        found = {key: record.text_hash for key in ever if (record := replica.vectors.vectors_of(key)) is not None}
        assert found == hashes, difference(found, hashes)
        assert replica.vectors.digest().hex() == digest_of(hashes)
        words = {key: text for key in ever if (text := replica.texts.text_of(key)) is not None}
        assert words == texts, difference(words, texts)
        engine = HashEngine(replica.space.dimension)
        for text in sorted(set(texts.values()) | {f"{title}{self.between}author 3" for title in TITLES})[:40]:
            hits = replica.vectors.search(engine.embed([text]).vectors[0], 1000)
            assert {hit.key: hit.text_hash for hit in hits} == hashes, "each hit is of a living book's text"
            keys = [key for key, _ in replica.texts.search(text, 1000)]
            assert set(keys) <= set(texts) and len(keys) == len(set(keys))
            best = [key for key, _ in replica.texts.search(text, 3)]
            if text in texts.values():
                assert hits[0].text_hash == hash_text(text)
                assert best


async def lose_last_second(redis: RedisServer) -> None:
    """kill -9, and the file ends where it ended a second before, in the middle of a command."""
    sizes: list[tuple[float, int]] = []
    file = max(redis.append_only_dir.glob("*.incr.aof"))
    while not sizes or sizes[-1][0] - sizes[0][0] < 2.5:
        sizes.append((time.monotonic(), file.stat().st_size))
        await asyncio.sleep(0.05)
    redis.kill()
    before = [size for moment, size in sizes if moment <= sizes[-1][0] - 1.0]
    assert file.stat().st_size > before[-1] + 100, "nothing was lost, so nothing would be tested"
    os.truncate(file, before[-1] - 7)


class Changes:
    """Changes, deletions and new rows under the same keys, about `RATE` a second, from a thread of its own."""

    def __init__(self, dsn: str, seed: int) -> None:
        self._dsn, self._chance = dsn, random.Random(seed)
        self.count = 0
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Changes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            with psycopg.connect(self._dsn, autocommit=True) as connection:
                while not self._stop.wait(1 / RATE):
                    connection.execute(*self._next())
                    self.count += 1
        except psycopg.Error as error:
            self._failure = error

    def _next(self) -> tuple[Any, Sequence[Any]]:
        chance = self._chance
        roll, key, title = chance.random(), chance.randint(1, KEYS), chance.choice(TITLES)
        if roll < 0.35:
            return "UPDATE books SET title = %s WHERE id = %s", (title, key)
        if roll < 0.5:
            return "UPDATE books SET year = %s WHERE id = %s", (chance.randint(1900, 1905), key)
        if roll < 0.72:
            return "DELETE FROM books WHERE id = %s", (key,)
        if roll < 0.97:
            return (
                "INSERT INTO books VALUES (%s, %s, %s, 1900) ON CONFLICT (id) DO NOTHING",
                (key, chance.randint(0, 9), title),
            )
        return "UPDATE authors SET name = %s WHERE id = %s", (f"author {chance.randint(0, 3)}", chance.randint(0, 9))


def digest_of(hashes: dict[str, str]) -> str:
    digest = KeySetDigest()
    for key, text_hash in hashes.items():
        digest.add(key, text_hash)
    return digest.hex()


def difference(found: dict[str, str], expected: dict[str, str]) -> str:
    keys = sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))
    return "; ".join(f"{key}: {found.get(key)} instead of {expected.get(key)}" for key in keys[:10])


def seeds(default: int) -> list[int]:
    """Of a test; CTXPIPE_TEST_SEED asks for one of them, CTXPIPE_TEST_ROUNDS for so many others, which takes long."""
    asked, rounds = os.environ.get("CTXPIPE_TEST_SEED"), os.environ.get("CTXPIPE_TEST_ROUNDS")
    if asked is not None:
        return [int(asked)]
    return [default] if rounds is None else [random.randrange(1 << 32) for _ in range(int(rounds))]
