"""Steady changes of every kind on the demo's tables, from a thread of its own, while a test breaks things."""

from __future__ import annotations

import threading
import time
from random import Random
from typing import Any

import psycopg


class Load:
    """Use as a context manager: inserts, updates, moves, key changes and deletes at `rate` changes per second."""

    def __init__(self, dsn: str, seed: int, rate: float = 120.0) -> None:
        self.dsn, self.random, self.rate = dsn, Random(seed), rate
        self.changes = 0
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        if self.failure is not None:
            raise self.failure

    def wait(self, changes: int, timeout_s: float = 60.0) -> None:
        """Returns when so many more changes are committed."""
        target, deadline = self.changes + changes, time.monotonic() + timeout_s
        while self.changes < target:
            assert self.failure is None, self.failure
            assert time.monotonic() < deadline, f"only {self.changes} changes"
            time.sleep(0.01)

    def _run(self) -> None:
        try:
            with psycopg.connect(self.dsn, autocommit=True) as connection:
                while not self._stop.is_set():
                    self._change(connection)
                    self.changes += 1
                    time.sleep(1 / self.rate)
        except psycopg.Error as error:
            self.failure = error

    def _change(self, connection: psycopg.Connection[Any]) -> None:
        roll, pick = self.random.random(), self.random.randint
        one = "flight_id = (SELECT flight_id FROM flights ORDER BY flight_id OFFSET %s LIMIT 1)"
        place = pick(0, 1500)
        if roll < 0.35:
            connection.execute(
                "INSERT INTO flights (flight_id, carrier, flight, tailnum, origin, dest, distance, time_hour)"
                " SELECT (SELECT max(flight_id) + 1 FROM flights), carrier, flight, tailnum, origin, dest, distance,"
                f" time_hour + interval '1 hour' FROM flights WHERE {one}",
                (place,),
            )
        elif roll < 0.7:
            connection.execute(f"UPDATE flights SET dep_delay = %s, dep_time = 900 WHERE {one}", (pick(-5, 300), place))
        elif roll < 0.78:
            carrier = self.random.choice(["UA", "AA", "B6", "DL"])
            connection.execute(f"UPDATE flights SET carrier = %s, tailnum = 'N14228' WHERE {one}", (carrier, place))
        elif roll < 0.84:
            connection.execute(f"DELETE FROM flights WHERE {one}", (place,))
        elif roll < 0.88:
            change = "flight_id = (SELECT max(flight_id) + 1 FROM flights)"
            connection.execute(f"UPDATE flights SET {change} WHERE {one}", (place,))
        elif roll < 0.94:
            connection.execute(
                "UPDATE weather SET temp = %s WHERE origin = 'EWR'"
                " AND time_hour = (SELECT min(time_hour) FROM flights)",
                (pick(0, 100),),
            )
        else:
            connection.execute("UPDATE planes SET seats = %s WHERE tailnum = 'N14228'", (pick(1, 400),))
