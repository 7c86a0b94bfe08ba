"""What a guarded call may cost and how long it may take: prices, budgets, pauses, shares of a deadline, config."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.core.errors import ConfigError
from pipeline.guard.budgets import CostBudgets
from pipeline.guard.config import BudgetConfig, Endpoint, GuardConfig, Route
from pipeline.guard.ladder import Step, end_s, local_first, steps_of, until_s
from pipeline.guard.output import of_schema
from pipeline.guard.prices import PriceTable, read_prices
from pipeline.guard.rate_limits import Cooldowns, pause_s
from pipeline.guard.values import ModelRequest, Tokens
from pipeline.guard.wire import body_of

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
HOUR_US = 3_600_000_000


def endpoint(name: str = "a", **more: object) -> Endpoint:
    return Endpoint.model_validate({"name": name, "url": "http://127.0.0.1:1/v1", "model": "m", **more})


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("2", 2),
        ("0", 0),
        ("1.5", 1.5),
        ("99999999999999999999", 300),
        ("1e400", 300),
        ("inf", 300),
        ("-5", 5),
        ("nan", 5),
        ("soon", 5),
        ("", 5),
        ("Mon, 30 Nov 2026 12:00:30 GMT", 30),
        ("Mon, 30 Nov 2026 12:00:30", 30),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 300),
        ("Fri, 31 Feb 2026 23:59:59 GMT", 5),
        ("9" * 100_000, 300),
    ],
)
def test_retry_after(told: str, seconds: float) -> None:
    assert pause_s({"retry-after": told}, NOW, endpoint()) == seconds
    assert pause_s({}, NOW, endpoint()) == 5


@given(st.text(max_size=80))
def test_any_retry_after_gives_a_pause_within_the_limits(told: str) -> None:
    assert 0 <= pause_s({"retry-after": told}, NOW, endpoint()) <= 300


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    now_s = [100.0]
    cooldowns = Cooldowns(lambda: now_s[0], lambda: 0.0)
    assert cooldowns.left_s("a") == 0
    cooldowns.pause("a", 10)
    cooldowns.pause("a", 1)
    assert cooldowns.left_s("a") == 10
    assert cooldowns.left_s("b") == 0
    now_s[0] = 110.0
    assert cooldowns.left_s("a") == 0


def test_a_price_holds_from_its_day_and_none_is_none() -> None:
    table = read_prices()
    assert table.currency == "USD"
    assert table.of("gpt-4o", date(2024, 8, 5)) is None
    price = table.of("gpt-4o", date(2026, 11, 30))
    assert price is not None
    assert price.of(Tokens(1_000_000, 100_000), 5) == Decimal("3.5")
    assert price.of(Tokens(None, 5), 5) is None
    assert table.of("gpt-unheard-of", date(2026, 11, 30)) is None
    local = table.of("local-cpu", date(2026, 11, 30))
    assert local is not None
    assert local.of(Tokens(), 10) == Decimal("0.00028")
    assert price.most(1000, 100, 5) > price.of(Tokens(300, 100), 5)  # type: ignore[operator]


def test_mistakes_of_a_price_table_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(
        'currency = "USD"\n[[price]]\nmodel = "a"\nfrom = 2026-01-01\n[[price]]\nmodel = "b"\nfrom = 2026-01-01\n'
        'input_per_million = "-1"\noutput_per_million = "nan"\n'
    )
    with pytest.raises(ConfigError) as caught:
        read_prices(file)
    assert len(caught.value.mistakes) == 3
    assert all(str(file) in mistake for mistake in caught.value.mistakes)
    twice = '[[price]]\nmodel = "a"\nfrom = 2026-01-01\nper_second = "1"\n'
    for text in ("[[price", 'currency = "USD"\n' + 2 * twice):
        file.write_text(text)
        with pytest.raises(ConfigError):
            read_prices(file)
    with pytest.raises(ConfigError, match="can't be read"):
        read_prices(tmp_path / "none.toml")


def test_a_budget_is_set_aside_before_and_settled_after() -> None:
    limits = {"acme": Decimal(10), "*": Decimal(1)}
    budgets = CostBudgets(BudgetConfig(tenant_cost_per_hour_max=limits))
    first = budgets.reserve("acme", Decimal(6), 0)
    assert first is not None
    assert budgets.reserve("acme", Decimal(5), 0) is None, "set aside counts as spent"
    budgets.settle(first, Decimal(2))
    second = budgets.reserve("acme", Decimal(8), 0)
    assert second is not None
    assert budgets.spent("acme", 0) == 10
    budgets.settle(second, None)
    assert budgets.spent("acme", 0) == 10, "of unknown cost: all that was set aside is spent"
    assert budgets.reserve("other", Decimal(1), 0) is not None
    assert budgets.reserve("another", Decimal(1), 0) is not None, "each has the limit of * by itself"
    assert budgets.reserve("acme", Decimal(10), HOUR_US) is not None, "a new hour"


def test_what_was_set_aside_in_one_hour_is_settled_in_it() -> None:
    budgets = CostBudgets(BudgetConfig(tenant_cost_per_hour_max={"*": Decimal(10)}))
    before = budgets.reserve("a", Decimal(10), HOUR_US - 1)
    after = budgets.reserve("a", Decimal(4), HOUR_US)
    assert before is not None and after is not None
    budgets.settle(before, Decimal(0))
    assert budgets.spent("a", HOUR_US) == 4


@given(st.lists(st.tuples(st.decimals(0, 5, places=2), st.decimals(0, 5, places=2)), max_size=40))
def test_a_budget_is_never_overdrawn_where_costs_stay_below_what_was_set_aside(
    calls: list[tuple[Decimal, Decimal]],
) -> None:
    budgets = CostBudgets(BudgetConfig(tenant_cost_per_hour_max={"*": Decimal(20)}))
    open_ones, paid = [], Decimal(0)
    for most, share in calls:
        reservation = budgets.reserve(None, most, 0)
        if reservation is not None:
            open_ones.append((reservation, min(most, share)))
    for reservation, cost in open_ones:
        budgets.settle(reservation, cost)
        paid += cost
    assert budgets.spent(None, 0) == paid <= 20


def test_a_deadline_is_shared_so_that_what_is_below_has_its_time() -> None:
    local = Step("local", endpoint("c", reserve_s=0.3))
    assert until_s(0, 1, endpoint(), []) == 1
    assert until_s(0, 1, endpoint(timeout_s=0.2), [local]) == 0.2
    assert until_s(0, 1, endpoint(), [local]) == pytest.approx(0.7)
    assert until_s(0, 1, endpoint(), [Step("other", endpoint("b"))]) == pytest.approx(0.85)
    assert until_s(0, 1, endpoint(), 9 * [local]) == 0.5, "at most half is kept"
    assert end_s(10, 30) == pytest.approx(39.94)
    assert end_s(10, 0.1) == pytest.approx(10.095)


def test_a_rate_limit_puts_local_models_first() -> None:
    endpoints = {name: endpoint(name) for name in "abcd"}
    steps = steps_of(Route(primary="a", others=("b", "c"), local=("d",)), endpoints)
    assert [step.rung for step in steps] == ["primary", "other", "other", "local"]
    assert [step.endpoint.name for step in local_first(steps[1:])] == ["d", "b", "c"]


def test_mistakes_of_a_config_are_told_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        GuardConfig(
            endpoints=(endpoint("a"), endpoint("a")),
            routes={"x": Route(primary="b"), "y": Route(primary="a", others=("a",))},
        )
    told = str(caught.value)
    for part in ("two endpoints 'a'", "route 'x' names the endpoint 'b'", "route 'y' names an endpoint twice"):
        assert part in told
    with pytest.raises(ValidationError, match="is no address of an API"):
        endpoint(url="ftp://x/v1")
    assert "secret" not in repr(endpoint(api_key="secret", url="http://u:secret@h/v1"))


def test_a_table_without_prices_knows_nothing() -> None:
    assert PriceTable([]).of("gpt-4o", NOW.date()) is None


@pytest.mark.parametrize(
    ("constraint", "asked"),
    [
        ("none", None),
        ("json_object", {"type": "json_object"}),
        ("json_object_schema", {"type": "json_object", "schema": {"type": "array"}}),
        (
            "json_schema",
            {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"type": "array"}}},
        ),
    ],
)
def test_how_an_endpoint_is_asked_to_keep_to_a_schema(constraint: str, asked: object) -> None:
    request = ModelRequest(task="t", messages=[], output=of_schema("x", {"type": "array"}))
    assert body_of(request, endpoint(constraint=constraint)).get("response_format") == asked
    assert "response_format" not in body_of(ModelRequest(task="t", messages=[]), endpoint(constraint=constraint))
