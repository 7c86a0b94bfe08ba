"""Python's collector of cycles in processes that run for weeks: a full pass stops everything, for a tenth of a second
where it looks at a hundred thousand objects of imports once more."""

from __future__ import annotations

import gc


def settle(young_max: int) -> None:
    """Call it when everything is imported and opened: what lives now is never looked at again.

    `young_max`: so many new objects may pile up before the collector looks for cycles among them. A pass over 10,000
    takes about a millisecond.
    """
    gc.collect()  # what is garbage now would else stay for ever
    gc.freeze()
    gc.set_threshold(young_max, 20, 100)
