"""Rounds of cases and questions: run what there is, ask what lacked, until every case has all that it asks for.

suite → cases from recordings → what they lack → (asked for real) → cases again … → results, recordings
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from pipeline.core.config import filled
from pipeline.core.errors import ConfigError
from pipeline.evaluation.models.answers import Asked
from pipeline.evaluation.models.live import Collecting, Live, Place
from pipeline.evaluation.models.recordings import Recording, Recordings
from pipeline.evaluation.models.secrets import Secrets, secrets_of
from pipeline.evaluation.runner import chosen, run_suite
from pipeline.evaluation.suite import FLOWLESS, GUARD, Suite
from pipeline.evaluation.values import Case, CaseResult
from pipeline.guard.config import Endpoint
from pipeline.guard.prices import PriceTable
from schemas.yaml_file import Mistake

ROUNDS_MAX = 100
"""So many questions one after the other; a flow that asks on and on never ends."""


@dataclass(frozen=True, slots=True)
class Lacking:
    """What a round is about to ask. `cost_max`: the most that it can cost where all prices are known, else None."""

    round: int
    wanted: Sequence[Asked]
    calls: int
    cost_max: Decimal | None


@dataclass
class Gathered:
    """`results` of the cases that had all they asked for, `used` the recordings that they needed. `failed`: by case,
    why it lacks one; `harness`: what kept cases from running at all. `declined`: whoever watched did not want a round.
    """

    results: dict[str, CaseResult] = field(default_factory=dict)
    used: set[Place] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    harness: list[str] = field(default_factory=list)
    rounds: int = 0
    declined: bool = False

    @property
    def whole(self) -> bool:
        return not (self.failed or self.harness or self.declined)


def gather(
    suite: Suite,
    live: Live,
    kept: Recordings,
    cases: Sequence[Case],
    allowed: Callable[[Lacking], bool] = lambda _: True,
    running: Callable[[int, int], None] | None = None,
    times: Recordings | None = None,
) -> Gathered:
    """`kept` answers before anybody is asked; `allowed` says, round by round, whether to ask; `times`: of answers, in
    the place of those that they really took. Raises SuiteError where the suite can't run at all, KeyboardInterrupt:
    what came until then is in `live`."""
    gathered, left = Gathered(), list(cases)
    while left:
        source = Collecting(live.made, kept, live.problems, times)
        run = run_suite(replace(suite, cases=tuple(left)), jobs=0, source=source, progress=running)
        gathered.used |= source.used
        gathered.results.update({result.id: result for result in run.results})
        gathered.failed.update(source.failed)
        waiting = {*source.missing, *source.failed}
        gathered.harness += [told for told in run.harness if not _is_of(told, waiting)]
        left = [case for case in left if case.id in source.missing]
        if not left:
            break
        gathered.rounds += 1
        wanted = list(source.missing.values())
        if gathered.rounds > ROUNDS_MAX:
            told = f"its flow still asks after {ROUNDS_MAX} answers; it would never end"
            gathered.failed.update({case.id: told for case in left})
            break
        if not allowed(_lacking(gathered.rounds, wanted, live)):
            gathered.declined = True
            break
        asyncio.run(live.ask(wanted))
    return gathered


def asking_cases(suite: Suite, only: Sequence[str] | None) -> list[Case]:
    """Those whose flow may ask a model. Raises SuiteError for a name that fits none."""
    return [case for case in chosen(suite, only) if case.kind not in FLOWLESS]


def merged(kept: Recordings, live: Live, only_missing: bool) -> list[Recording]:
    """What there is afterwards: a request that was asked anew keeps none of its old draws."""
    made = live.recordings()
    anew = set() if only_missing else {one.key for one in made}
    places: dict[Place, Recording] = {(one.key, one.draw): one for one in kept if one.key not in anew}
    places.update({(one.key, one.draw): one for one in made})
    return list(places.values())


def live_endpoints(
    suite: Suite, urls: Iterable[str], environment: Mapping[str, str] = os.environ, none: Iterable[str] = ()
) -> tuple[dict[str, Endpoint], Secrets]:
    """The suite's endpoints with their keys, at other addresses where `urls` gives them (`URL` for all, `NAME=URL`),
    and what must not be recorded (`none`: what is no secret). Raises ConfigError with all mistakes."""
    if suite.guard is None:
        raise ConfigError([f"{suite.folder} names no endpoints; write {GUARD} with endpoints and routes"])
    found, mistakes = {}, list[str]()
    addresses = _addresses(urls, [one.name for one in suite.guard.endpoints], mistakes)
    for endpoint in suite.guard.endpoints:
        change: dict[str, object] = {}
        if endpoint.name in addresses or "" in addresses:
            change["url"] = addresses.get(endpoint.name, addresses.get("", ""))
        if endpoint.api_key is not None:
            change["api_key"] = _key(endpoint, endpoint.api_key.get_secret_value(), mistakes)
        try:
            found[endpoint.name] = Endpoint.model_validate({**dict(endpoint), **change})
        except ValueError:
            mistakes.append(f"--model-url: {change['url']!r} is no address; write http://127.0.0.1:8000/v1")
    if mistakes:
        raise ConfigError(mistakes)
    config = suite.guard.model_copy(update={"endpoints": tuple(found.values())})
    return found, secrets_of(config, environment, none)


def _key(endpoint: Endpoint, written: str, mistakes: list[str]) -> str | None:
    if not written.startswith("${"):
        mistakes.append(
            f"{GUARD}: endpoint {endpoint.name}: api_key stands in the file itself; write ${{NAME}}, and put the key "
            "into the environment variable NAME (or a file, and its path into NAME_FILE)"
        )
        return None
    told: list[Mistake] = []
    value = str(filled(written, ("api_key",), told))
    mistakes += [f"{GUARD}: endpoint {endpoint.name}: api_key: {one.text}" for one in told]
    return value or None


def _addresses(urls: Iterable[str], names: Sequence[str], mistakes: list[str]) -> dict[str, str]:
    found = {}
    for one in urls:
        name, equals, url = one.partition("=")
        if not equals or "/" in name:
            name, url = "", one
        if name and name not in names:
            mistakes.append(f"--model-url: there is no endpoint {name!r} in {GUARD}, only {', '.join(names)}")
        found[name] = url
    return found


def _lacking(number: int, wanted: Sequence[Asked], live: Live) -> Lacking:
    keys = {(asked.key, asked.number): asked for asked in wanted}
    plan = live.plan
    costs, calls = list[Decimal | None](), 0
    for (_, draw), asked in keys.items():
        times = max(plan.draws, draw + 1) - draw
        calls += times
        costs.append(_cost_max(plan.endpoints[asked.endpoint.name], asked, plan.prices, live, times))
    known = [cost for cost in costs if cost is not None]
    return Lacking(number, wanted, calls, sum(known, Decimal(0)) if len(known) == len(costs) else None)


def _cost_max(endpoint: Endpoint, asked: Asked, prices: PriceTable, live: Live, times: int) -> Decimal | None:
    price = prices.of(endpoint.price_name, live.plan.day)
    tokens = asked.body.get("max_tokens")
    if price is None or not isinstance(tokens, int):
        return None
    return times * price.most(len(str(asked.body).encode(errors="replace")), tokens, endpoint.timeout_s)


def _is_of(told: str, cases: set[str]) -> bool:
    return any(told.startswith(f"case {case}: not recorded yet") for case in cases)
