"""What the reference orchestrator may do in the world, as a case gives it: seats of other flights are in its input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class CaseTools:
    """`others`: [{"flight_id", "seats"}], later departures of the same airline to the same place."""

    def __init__(self, case_input: Mapping[str, Any]) -> None:
        self._others = [dict(one) for one in case_input.get("others", ())]
        self._seats = {one["flight_id"]: one["seats"] for one in self._others}
        self._refuses = set(case_input.get("refuses", ()))

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Raises RuntimeError for a tool that the case makes refuse, LookupError for one that there is not."""
        if name in self._refuses:
            raise RuntimeError(f"{name} is out of order")
        if name == "later_departures":
            return [dict(one) for one in self._others]
        if name == "rebook":
            seats = self._seats.get(arguments["flight_id"], 0)
            done = seats >= arguments["passengers"]
            if done:
                self._seats[arguments["flight_id"]] = seats - arguments["passengers"]
            return {"done": done}
        if name in ("announce", "ask_staff"):
            return {"done": True}
        raise LookupError(f"there is no tool {name!r}")


def tools(case_input: Mapping[str, Any]) -> CaseTools:
    return CaseTools(case_input)
