"""When calls end, so that many with one deadline don't end at one moment: the work after the last model takes an event
loop its time, and two hundred callers that are told at once are told one after the other. Pure.

Each call books what its end takes, on a time line of slices. Where a slice is full its models have to be done a little
earlier; where few calls end together nothing is taken from anybody.
"""

from __future__ import annotations

from dataclasses import dataclass

ENDING_US, ENDING_US_MAX = 200, 3_200
"""What the end of a call takes a loop: giving up a connection, the function, the way back. On a busy machine it is
more: twice as much is expected after answers that were late, a little less after each that was not."""
KEPT_SHARE = 0.999
SLICE_US = 10_000
EARLIER_SHARE_MAX = 0.4
"""Of a deadline; beyond that answers get late rather than models have no time."""
LEARNS = 0.2
"""The weight of the newest time of a function."""


@dataclass(frozen=True, slots=True, eq=False)
class Booking:
    """`ends_s`: until when models may work. `release` it. `number` counts bookings."""

    number: int
    ends_s: float
    parts: tuple[tuple[int, int], ...]


class Endings:
    """Of one event loop. Times are the guard's clock's; what is booked is counted in whole microseconds."""

    def __init__(self) -> None:
        self._booked_us: dict[int, int] = {}
        self._free: dict[int, int] = {}
        """Slice → the last one before it that may have room; all between are full."""
        self._functions_s: dict[str, float] = {}
        self._ending_us, self._count, self._learned_at = float(ENDING_US), 0, 0

    def book(self, ends_s: float, began_s: float, deadline_s: float, task: str) -> Booking:
        """`ends_s` is when models would have to be done were nobody else there."""
        at_most_s = EARLIER_SHARE_MAX * max(0.0, deadline_s)
        self._count += 1
        wanted_us = int(self._ending_us + 1e6 * min(self.expected_s(task), at_most_s))
        number = int(ends_s * 1e6) // SLICE_US
        if number not in self._booked_us and wanted_us <= SLICE_US:
            self._booked_us[number] = wanted_us
            return Booking(self._count, ends_s, ((number, wanted_us),))
        earliest_s = min(ends_s, began_s + deadline_s - at_most_s)
        first = int(earliest_s * 1e6) // SLICE_US
        parts, begins_us, start = [], int(ends_s * 1e6), number
        number = self._free.get(start, start)
        while wanted_us and number >= first:
            booked_us = self._booked_us.get(number, 0)
            part_us = min(wanted_us, SLICE_US - booked_us)
            if part_us:
                self._booked_us[number] = booked_us + part_us
                begins_us = min(begins_us, (number + 1) * SLICE_US - booked_us - part_us)
                parts.append((number, part_us))
                wanted_us -= part_us
            number -= 1
        self._free[start] = number + 1
        return Booking(self._count, earliest_s if wanted_us else max(earliest_s, begins_us / 1e6), tuple(parts))

    def release(self, booking: Booking, over_s: float, deadline_at_s: float) -> None:
        """The call is over at `over_s`, whenever that is."""
        self._free.clear()
        if over_s > deadline_at_s:
            if booking.number > self._learned_at:  # those booked before it was learned are late for the same reason
                self._ending_us, self._learned_at = min(ENDING_US_MAX, 2 * self._ending_us), self._count
        elif over_s > booking.ends_s:
            self._ending_us = max(ENDING_US, self._ending_us * KEPT_SHARE)
        for number, part_us in booking.parts:
            left_us = self._booked_us[number] - part_us
            if left_us:
                self._booked_us[number] = left_us
            else:
                del self._booked_us[number]

    def took(self, task: str, function_s: float) -> None:
        """What the application's function kept the loop busy for."""
        known_s = self._functions_s.get(task, function_s)
        self._functions_s[task] = known_s + LEARNS * (function_s - known_s)

    def expected_s(self, task: str) -> float:
        """What it will; 0 where nobody knows."""
        return self._functions_s.get(task, 0.0)
