"""`ctxpipe eval compare --every`: shadow traffic watched until the evidence is there, with a look after each pair."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from pipeline.commands._eval_compare_show import look_line

if TYPE_CHECKING:
    from pipeline.commands._eval_compare_run import Options
    from pipeline.evaluation.statistics.sides import Side
    from pipeline.evaluation.values import CaseResult


def watch_pairs(options: Options, every_s: float, group: Callable[[CaseResult], str] | None) -> None:
    """Ends when it is decided. A file that is not there yet, or empty, is waited for. Raises CompareError."""
    from pipeline.evaluation.statistics.sides import sides_of_pairs
    from pipeline.guard.routing.pairs import read_pairs

    assert options.pairs_file is not None
    watching, told = _Watching(options, group), ""
    while True:
        pairs = read_pairs(options.pairs_file) if options.pairs_file.exists() else []
        if pairs:
            line = watching.look(*sides_of_pairs(pairs, str(options.pairs_file), options.task))
        else:
            line = f"{options.pairs_file} has no pairs yet; waiting"
        if line != told:
            click.echo(line, err=options.as_json)
        told = line
        if watching.watch.verdict != "inconclusive":
            return
        time.sleep(every_s)


class _Watching:
    """Pairs that are new are added to one watch; other models begin another."""

    def __init__(self, options: Options, group: Callable[[CaseResult], str] | None) -> None:
        self._options, self._group = options, group or (lambda result: result.group)
        self._models: object = None
        self._begin()

    def _begin(self) -> None:
        from pipeline.evaluation.statistics.sequence import Watch

        self.watch = Watch(self._options.claim_points / 100, group_pairs_max=self._options.group_pairs)
        self._seen: set[str] = set()

    def look(self, a: Side, b: Side) -> str:
        from pipeline.evaluation.statistics.matching import metric_values

        models = [(task, one.endpoint, one.model, one.revision) for side in (a, b) for task, one in side.models.items()]
        if models != self._models:
            self._models = models
            self._begin()
        new = [pair for pair in zip(a.results, b.results, strict=True) if pair[0].digest not in self._seen]
        for (first, _), (one, two) in zip(new, metric_values(new, self._options.metric), strict=True):
            self._seen.add(first.digest)
            self.watch.add(self._group(first), two - one)
        return look_line(self.watch.look())
