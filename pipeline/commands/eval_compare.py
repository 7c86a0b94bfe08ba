"""`ctxpipe eval compare`: whether one model is better than another, by pairs, with the evidence that a swap demands."""

from __future__ import annotations

from pathlib import Path

import click

PLACE = click.Path(path_type=Path, exists=True)
FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("a", type=PLACE, required=False)
@click.argument("b", type=PLACE, required=False)
@click.option("--pairs", "pairs_file", type=FILE, metavar="FILE",
              help="Instead of A and B: pairs that shadow traffic left.")  # fmt: skip
@click.option("--model", "models", multiple=True, metavar="SIDE=ENDPOINT",
              help="Run the suite with this endpoint first: A=…, B=….")  # fmt: skip
@click.option("--task", metavar="TASK", help="Whose model differs; needed where it can't be told.")
@click.option("--claim", default="better", show_default=True, metavar="CLAIM",
              help="better, or points:4 for better by at least 4 points of 100.")  # fmt: skip
@click.option("--metric", default="score", show_default=True,
              help="passed, score, another measure from 0 to 1, or check:NAME; more is better.")  # fmt: skip
@click.option("--limit", "limits", multiple=True, metavar="MEASURE:+N[%]",
              help="May rise by so much at most: latency_ms:+50, cost:+10%, malformed:+0.01.")  # fmt: skip
@click.option("--plan", metavar="effect=4,discordant=0.15",
              help="The gain to be found, in points: tells first how many pairs that takes.")  # fmt: skip
@click.option("--method", type=click.Choice(["auto", "mcnemar", "sign_flip", "bootstrap"]), default="auto")
@click.option("--sequence", is_flag=True, help="By evidence that holds however often one looks.")
@click.option("--every", "every_s", type=click.FloatRange(min=0.1), metavar="SECONDS",
              help="With --pairs: keep looking until it is decided.")  # fmt: skip
@click.option("--group-pairs", type=click.IntRange(min=1), default=1, metavar="N",
              help="With --pairs: so many of a group count in a sequence; fixed before any look.")  # fmt: skip
@click.option("--group", type=click.Choice(["group", "case"]), default="group",
              help="What is drawn: groups (tenants, entities), or single cases as if independent.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Processes of a run; default: one per core.")
@click.option("--evidence", "evidence_file", type=FILE, metavar="FILE", help="Write what a routing file has to name.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object as the last line.")
@click.option("--html", "html_file", type=FILE, metavar="FILE", help="Write a page with plots.")
def command(
    a: Path | None,
    b: Path | None,
    pairs_file: Path | None,
    models: tuple[str, ...],
    task: str | None,
    claim: str,
    metric: str,
    limits: tuple[str, ...],
    plan: str | None,
    method: str,
    sequence: bool,
    every_s: float | None,
    group_pairs: int,
    group: str,
    jobs: int | None,
    evidence_file: Path | None,
    as_json: bool,
    html_file: Path | None,
) -> None:
    """Tell whether B, the candidate, is better than A, the active model, on the same cases.

    A and B are files of `ctxpipe eval run --results`, or folders of suites, which are run; one folder stands for both
    with --model. Differences are judged pair by pair, and groups count, not cases.

    \b
      ctxpipe eval compare active.jsonl candidate.jsonl --claim points:4 --limit latency_ms:+50
      ctxpipe eval compare tests/evals --task rebook --model B=small --evidence evidence/rebook.json
      ctxpipe eval compare --plan effect=4,discordant=0.15
      ctxpipe eval compare --pairs shadow.jsonl --sequence --every 10

    Exit code 0: the claim holds and every limit is kept; 1: it does not hold, or a limit is broken; 2: it can't be told
    from these pairs; 3: nothing was decided.
    """
    from pipeline.commands._eval_compare_options import claim_of, limits_of, models_of, plan_of
    from pipeline.commands._eval_compare_run import Options, compare

    _refuse(a, b, pairs_file, models, plan, sequence, every_s, method)
    claim_points, asked_limits, chosen = claim_of(claim), limits_of(limits), models_of(models)
    worth_points, assumed = plan_of(plan, claim_points) if plan is not None else (None, [])
    options = Options(
        a=a,
        b=b,
        pairs_file=pairs_file,
        models=chosen,
        task=task,
        claim_points=claim_points,
        metric=metric,
        limits=asked_limits,
        worth_points=worth_points,
        method="sequence" if sequence else method,
        every_s=every_s,
        group_pairs=group_pairs,
        by_case=group == "case",
        jobs=jobs,
        evidence_file=evidence_file,
        html_file=html_file,
        as_json=as_json,
    )
    click.get_current_context().exit(compare(options, assumed))


def _refuse(
    a: Path | None,
    b: Path | None,
    pairs_file: Path | None,
    models: tuple[str, ...],
    plan: str | None,
    sequence: bool,
    every_s: float | None,
    method: str,
) -> None:
    """What of the command line does not go together, all at once."""
    wrong = []
    if pairs_file is not None and (a is not None or models):
        wrong.append("--pairs stands instead of A, B and --model")
    if pairs_file is None and a is None and plan is None:
        wrong.append("name A and B: two results files, or a suite with --model B=ENDPOINT (or --plan, or --pairs)")
    if a is not None and b is None and not models and plan is None:
        wrong.append("B is missing: a second results file, or --model B=ENDPOINT for a suite")
    if every_s is not None and (pairs_file is None or not sequence):
        wrong.append("--every goes with --pairs and --sequence: only such evidence may be looked at again and again")
    if sequence and method != "auto":
        wrong.append(f"--sequence is a method of its own; leave --method {method} out")
    if wrong:
        raise click.UsageError("; ".join(wrong))
