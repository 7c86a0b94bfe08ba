"""`ctxpipe eval record`: real models are asked, once, on purpose; what they answer is what every later run sees."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands._eval_live import Asks, Shown, by_reason, live_options, plan_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.evaluation.models.gathering import Gathered
    from pipeline.evaluation.models.live import Live
    from pipeline.evaluation.models.recordings import Recording, Recordings
    from pipeline.evaluation.suite import Suite

EXIT_HARNESS = 3
SHOWN_MAX = 20


@click.command()
@click.argument("suite", type=click.Path(path_type=Path))
@click.option("--only", multiple=True, metavar="WHAT", help="A case's id, a pattern (a/*), a kind, or tag:NAME.")
@click.option("--missing", is_flag=True, help="Ask only what has no recording yet; without it, all is asked anew.")
@click.option("--prune", is_flag=True, help="Remove recordings that no case asks for any more.")
@click.option("--model", metavar="ENDPOINT", help="Ask this one first, as `ctxpipe eval compare --model B=…` will.")
@click.option("--task", metavar="TASK", help="With --model: of this task only.")
@click.option("--draws", type=click.IntRange(1, 100), default=1, show_default=True,
              help="So many answers to each request; equal requests of one case get one after the other.")  # fmt: skip
@click.option("--failures", is_flag=True, help="Record outages too (timeouts, 429, 5xx), instead of refusing them.")
@live_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object, as the last line.")
def command(
    suite: Path, only: tuple[str, ...], model: str | None, task: str | None, as_json: bool, **options: Any
) -> None:
    """Ask the models of SUITE/guard.yaml, and keep what they answer in SUITE/recordings, byte for byte.

    A key stands in guard.yaml as ${NAME} and comes from the environment. Outages are not recorded, a request with a
    secret in it is not sent, and secrets in answers become stars. Exit code 3 where a case lacks a recording then.
    """
    from pipeline.evaluation.models.gathering import asking_cases
    from pipeline.evaluation.models.guarding import recordings_of
    from pipeline.evaluation.models.live import Live
    from pipeline.evaluation.suite import read_suite, with_model

    if task is not None and model is None:
        raise click.UsageError("--task goes with --model")
    read = read_suite(suite)
    if model is not None:
        read = with_model(read, model, task)
    before = recordings_of(read)
    with Shown(as_json) as shown:
        live = Live(plan_of(read, options), shown.made)
        try:
            gathered = _gathered(read, live, before, asking_cases(read, only), options, shown)
        except KeyboardInterrupt:
            _save(read, before, live, options["missing"], frozenset())
            came = len(live.recordings())
            click.echo(f"interrupted; {came} recordings are kept, and --missing goes on from there", err=True)
            raise
    # with another model first, recordings of the one that is active are asked for by nobody, and are no orphans
    whole = not only and model is None and gathered.whole
    orphans = _orphans(before, gathered, live) if whole else []
    pruned = frozenset((one.key, one.draw) for one in orphans) if options["prune"] else frozenset()
    files = _save(read, before, live, options["missing"], pruned)
    told = _as_object(read, before, live, gathered, orphans, pruned, files)
    if as_json:
        click.echo(json.dumps(told))
    else:
        _report(told, only)
    if not gathered.whole:
        raise click.exceptions.Exit(EXIT_HARNESS)


def _gathered(
    suite: Suite, live: Live, before: Recordings, cases: Sequence[Any], options: dict[str, Any], shown: Shown
) -> Gathered:
    from pipeline.evaluation.models.gathering import gather
    from pipeline.evaluation.models.recordings import Recordings

    kept = before if options["missing"] else Recordings()
    asks = Asks(live, options["ask_above"], options["yes"], shown)
    return gather(suite, live, kept, cases, asks, shown.cases)


def _save(
    suite: Suite, before: Recordings, live: Live, missing: bool, pruned: frozenset[tuple[str, int]]
) -> list[Path]:
    """Nothing is written where nothing changed."""
    from pipeline.evaluation.models.gathering import merged
    from pipeline.evaluation.models.guarding import recordings_folder
    from pipeline.evaluation.models.recordings import write_recordings

    if not live.made and not pruned:
        return []
    left = [one for one in merged(before, live, missing) if (one.key, one.draw) not in pruned]
    return write_recordings(recordings_folder(suite), left)


def _orphans(before: Recordings, gathered: Gathered, live: Live) -> list[Recording]:
    """Of those that were there before: no case asks for them. Draws beyond those that were asked for are meant."""
    asked = {key for key, _ in gathered.used} | {key for key, _ in live.made}
    return [one for one in before if one.key not in asked]


def _as_object(
    suite: Suite,
    before: Recordings,
    live: Live,
    gathered: Gathered,
    orphans: Sequence[Recording],
    pruned: frozenset[tuple[str, int]],
    files: Sequence[Path],
) -> dict[str, Any]:
    from pipeline.evaluation.models.live import answering_models

    made = live.recordings()
    masked = Counter(name for one in made for name in one.masked)
    return {
        "suite": suite.name,
        "cases": len(gathered.results) + len(gathered.failed),
        "recorded": len(made),
        "replaced": sum(before.has(one.key, one.draw) for one in made),
        "calls": live.calls,
        "rounds": gathered.rounds,
        "cost": float(live.cost),
        "cost_unknown": live.cost_unknown,
        "currency": live.plan.prices.currency,
        "masked": dict(sorted(masked.items())),
        "answered_by": {name: sorted(models) for name, models in answering_models(made).items()},
        "orphans": [
            {"key": one.key, "draw": one.draw, "task": one.task, "endpoint": one.endpoint, "on": one.on}
            for one in orphans
        ],
        "pruned": len(pruned),
        "failed": dict(sorted(gathered.failed.items())),
        "harness": gathered.harness,
        "declined": gathered.declined,
        "files": [str(file.relative_to(suite.folder)) for file in files],
    }


def _report(told: dict[str, Any], only: tuple[str, ...]) -> None:
    cost = f"{told['cost']:.6f} {told['currency']}"
    if told["cost_unknown"]:
        cost += f", and {told['cost_unknown']} of unknown cost"
    replaced = f", {told['replaced']} of them in the place of old ones" if told["replaced"] else ""
    click.echo(f"{told['recorded']} recorded{replaced}; {told['calls']} calls, {cost}")
    for name, models in told["answered_by"].items():
        click.echo(f"{name} says it is {', '.join(models)}")
    for name, times in told["masked"].items():
        click.echo(f"masked with stars: {name}, in {times} answers", err=True)
    for line in by_reason(told["failed"]):
        click.echo(f"no recording: {line}", err=True)
    for why in told["harness"][:SHOWN_MAX]:
        click.echo(f"not run: {why}", err=True)
    if len(told["harness"]) > SHOWN_MAX:
        click.echo(f"… and {len(told['harness']) - SHOWN_MAX} more", err=True)
    if told["declined"]:
        click.echo("nothing more was asked", err=True)
    elif told["pruned"]:
        click.echo(f"{told['pruned']} recordings that no case asks for were removed")
    elif told["orphans"]:
        click.echo(f"{len(told['orphans'])} recordings are asked for by no case; --prune removes them", err=True)
    elif only:
        click.echo("whether there are recordings that no case asks for shows without --only", err=True)
    if told["recorded"] or told["pruned"]:
        click.echo('next: ctxpipe eval run, and if it is as it should be: ctxpipe eval bless --reason "…"')
