"""What a call costs: a dated table of prices; what it does not know is unknown, never 0."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from datetime import date
from decimal import Decimal
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from pipeline.core.errors import ConfigError
from pipeline.core.section import ConfigPart
from pipeline.guard.values import Tokens

FILE = Path(__file__).with_name("prices.toml")
_MILLION = Decimal(1_000_000)
_BYTES_PER_TOKEN_MIN = 2
"""For what is set aside before a call: tokenizers make fewer tokens than that of nearly every text."""


class Price(ConfigPart):
    """Of one model from one day on: by tokens, by seconds of work, or both."""

    model: str = Field(min_length=1)
    begins: date = Field(alias="from")
    input_per_million: Decimal | None = Field(default=None, ge=0, allow_inf_nan=False)
    output_per_million: Decimal | None = Field(default=None, ge=0, allow_inf_nan=False)
    per_second: Decimal | None = Field(default=None, ge=0, allow_inf_nan=False)
    checked: date | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Price:
        by_tokens = self.input_per_million is not None and self.output_per_million is not None
        if (self.input_per_million is None) is not (self.output_per_million is None):
            raise ValueError("give both input_per_million and output_per_million, or neither")
        if not by_tokens and self.per_second is None:
            raise ValueError("gives no price; write input_per_million and output_per_million, or per_second")
        return self

    def of(self, tokens: Tokens, took_s: float) -> Decimal | None:
        """Of one answer; None where the price is by tokens and the endpoint did not count them."""
        cost = Decimal(0) if self.per_second is None else self.per_second * Decimal(str(round(took_s, 6)))
        if self.input_per_million is None or self.output_per_million is None:
            return cost
        if tokens.input is None or tokens.output is None:
            return None
        return cost + (tokens.input * self.input_per_million + tokens.output * self.output_per_million) / _MILLION

    def most(self, input_bytes: int, output_tokens_max: int, seconds_max: float) -> Decimal:
        """The most that one call can cost; what is set aside for it."""
        tokens = Tokens(input_bytes // _BYTES_PER_TOKEN_MIN + 1, output_tokens_max)
        most = self.of(tokens, seconds_max)
        return Decimal(0) if most is None else most


class _File(ConfigPart):
    currency: str = Field(pattern="^[A-Z]{3}$")
    price: tuple[Price, ...] = ()


class PriceTable:
    """All amounts are in `currency`."""

    def __init__(self, prices: Iterable[Price], currency: str = "USD") -> None:
        self.currency = currency
        self._by_model: dict[str, list[Price]] = {}
        for price in sorted(prices, key=lambda one: one.begins, reverse=True):
            self._by_model.setdefault(price.model, []).append(price)

    def of(self, model: str, day: date) -> Price | None:
        """The price that holds on that day, None: unknown."""
        return next((price for price in self._by_model.get(model, ()) if price.begins <= day), None)


def read_prices(file: Path = FILE) -> PriceTable:
    """Raises ConfigError with all mistakes of the file."""
    try:
        read = _File.model_validate(tomllib.loads(file.read_text()))
    except OSError as error:
        raise ConfigError([f"{file}: can't be read: {error.strerror}. Give the path of a price table"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{file}: is no TOML: {error}"]) from None
    except ValidationError as error:
        told = [f"{file}: {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)]
        raise ConfigError(told) from None
    days = [(price.model, price.begins) for price in read.price]
    twice = sorted({one for one in days if days.count(one) > 1})
    if twice:
        raise ConfigError([f"{file}: {model} has two prices from {begins} on; keep one" for model, begins in twice])
    return PriceTable(read.price, read.currency)
