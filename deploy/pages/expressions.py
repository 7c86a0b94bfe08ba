"""PromQL as dashboards ask it: metrics narrowed to what is chosen at the top, rates, quantiles."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.pages.panels import NAMESPACE, Choice

WINDOW = "$__rate_interval"


class Asking:
    """Of one dashboard: every metric narrowed to the namespaces and whatever else can be chosen there."""

    def __init__(self, *choices: Choice) -> None:
        self._matchers = [NAMESPACE.matcher(), *(choice.matcher() for choice in choices)]

    def of(self, metric: str, *matchers: str, all_of: bool = False) -> str:
        """The metric; `all_of`: narrowed to namespaces only, where it has not the labels of the choices."""
        chosen = self._matchers[:1] if all_of else self._matchers
        return f"{metric}{{{', '.join([*chosen, *matchers])}}}"

    def rate(self, metric: str, by: str, *matchers: str, all_of: bool = False) -> str:
        """Of a counter, per second."""
        return f"sum by ({by}) (rate({self.of(metric, *matchers, all_of=all_of)}[{WINDOW}]))"

    def quantile(self, share: float, metric: str, by: str, *matchers: str, all_of: bool = False) -> str:
        """Of a histogram."""
        buckets = self.rate(f"{metric}_bucket", f"{by}, le" if by else "le", *matchers, all_of=all_of)
        return f"histogram_quantile({share}, {buckets})"

    def share(self, part: str, whole: str, by: str, *matchers: str, all_of: bool = False) -> str:
        """Of two counters with the same labels `by`; nothing where nothing came."""
        above = self.rate(part, by, *matchers, all_of=all_of)
        return f"{above} / ({self.rate(whole, by, all_of=all_of)} > 0)"

    def greatest(self, metric: str, by: str, *matchers: str, all_of: bool = False) -> str:
        return f"max by ({by}) ({self.of(metric, *matchers, all_of=all_of)})"

    def smallest(self, metric: str, by: str, *matchers: str, all_of: bool = False) -> str:
        return f"min by ({by}) ({self.of(metric, *matchers, all_of=all_of)})"

    def total(self, metric: str, by: str, *matchers: str, all_of: bool = False) -> str:
        return f"sum by ({by}) ({self.of(metric, *matchers, all_of=all_of)})"


def legend(*labels: str) -> str:
    """Their values, with blanks between."""
    return " ".join(f"{{{{{label}}}}}" for label in labels)


def one_of(label: str, values: Sequence[str]) -> str:
    return f'{label}=~"{"|".join(values)}"'
