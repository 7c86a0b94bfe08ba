"""Labelled queries about planes, computed from the tables: what the gate judges embedding spaces of the demo by.

Questions are written as a person would ask them; which planes answer one is decided here by the rows alone, with other
means than the template has: regions by latitude and longitude, ages by numbers. Grade 3: all that was asked for holds;
grade 1: all but the last thing asked for.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.demo.data import AIRLINES, AIRPORTS, FLIGHTS, PLANES, Table, read_rows

ALL_GRADE, NEARLY_GRADE = 3, 1
NEARLY_MAX = 60
"""Nearly right answers say little where there are more of them."""
_TWIN_AISLE = ("747", "767", "777", "787", "A330", "A340")
_REGIONAL_MAKERS = ("EMBRAER", "BOMBARDIER INC", "CANADAIR")


@dataclass(frozen=True, slots=True)
class PlaneFacts:
    """What is asked about. `year` 0: unknown. `airline`: of most of its flights."""

    tailnum: str
    year: int
    maker: str
    model: str
    engines: int
    engine: str
    seats: int
    rotorcraft: bool
    airline: str
    regions: frozenset[str]
    destinations: frozenset[str]


Fact = Callable[[PlaneFacts], bool]


def write_queries(path: Path, flights: int | None = None) -> int:
    """One JSON object per line, for the planes as they are after the first `flights` flights; returns how many.

    A question that no plane answers yet is left out.
    """
    facts = plane_facts(flights)
    found = [(query, labels_of(facts, wanted)) for query, wanted in QUERIES]
    lines = [json.dumps({"query": query, "relevant": labels}) for query, labels in found if labels]
    path.write_text("".join(f"{line}\n" for line in lines))
    return len(lines)


def labels_of(facts: list[PlaneFacts], wanted: tuple[Fact, ...]) -> dict[str, int]:
    """Tail number → grade; empty where no plane has all that is wanted."""
    right = {plane.tailnum: ALL_GRADE for plane in facts if all(fact(plane) for fact in wanted)}
    if not right or len(wanted) < 2:
        return right
    nearly = [plane.tailnum for plane in facts if all(fact(plane) for fact in wanted[:-1])]
    if len(nearly) - len(right) > NEARLY_MAX:
        return right
    return {**dict.fromkeys(nearly, NEARLY_GRADE), **right}


def plane_facts(flights: int | None = None) -> list[PlaneFacts]:
    """Of every plane, from the package's files."""
    regions = {values["faa"]: _region(values) for values in _rows(AIRPORTS)}
    airlines = {values["carrier"]: values["name"] or "" for values in _rows(AIRLINES)}
    destinations: dict[str | None, set[str]] = defaultdict(set)
    carriers: dict[str | None, Counter[str | None]] = defaultdict(Counter)
    tailnum, dest, carrier = (_place(FLIGHTS, name) for name in ("tailnum", "dest", "carrier"))
    for row in read_rows(FLIGHTS, flights):
        destinations[row[tailnum]].add(row[dest] or "")
        carriers[row[tailnum]][row[carrier]] += 1
    planes = []
    for values in _rows(PLANES):
        key = values["tailnum"]
        most = carriers[key].most_common(1)
        airline = airlines.get(most[0][0] or "", "") if most else ""
        found = frozenset(destinations[key])
        planes.append(_facts(values, airline, found, frozenset(regions.get(one, "the Caribbean") for one in found)))
    return planes


def _facts(
    values: dict[str, str | None], airline: str, destinations: frozenset[str], regions: frozenset[str]
) -> PlaneFacts:
    return PlaneFacts(
        tailnum=values["tailnum"] or "",
        year=int(values["year"] or 0),
        maker=values["manufacturer"] or "",
        model=values["model"] or "",
        engines=int(values["engines"] or 0),
        engine=values["engine"] or "",
        seats=int(values["seats"] or 0),
        rotorcraft=values["type"] == "Rotorcraft",
        airline=airline,
        regions=regions,
        destinations=destinations,
    )


def _rows(table: Table) -> list[dict[str, str | None]]:
    names = [name for name, _ in table.columns]
    return [dict(zip(names, values, strict=True)) for values in read_rows(table)]


def _place(table: Table, column: str) -> int:
    return [name for name, _ in table.columns].index(column)


def _region(airport: dict[str, str | None]) -> str:
    """By where it lies; destinations that the table of airports lacks are islands of the Caribbean."""
    latitude, longitude, zone = (float(airport[name] or 0) for name in ("lat", "lon", "tz"))
    if zone <= -9:
        return "Hawaii" if zone == -10 else "Alaska"
    if longitude < -117:
        return "the west coast"
    if latitude < 31 and longitude > -83:
        return "Florida"
    return "elsewhere"


# What can be asked for.


def wide(plane: PlaneFacts) -> bool:
    return plane.model.startswith(_TWIN_AISLE)


def narrow(plane: PlaneFacts) -> bool:
    return plane.seats >= 100 and not wide(plane) and not plane.rotorcraft and plane.engines == 2


def regional(plane: PlaneFacts) -> bool:
    return plane.maker in _REGIONAL_MAKERS


def small(plane: PlaneFacts) -> bool:
    return plane.seats < 20 and not plane.rotorcraft


def helicopter(plane: PlaneFacts) -> bool:
    return plane.rotorcraft


def propeller(plane: PlaneFacts) -> bool:
    return plane.engine in ("Reciprocating", "4 Cycle", "Turbo-prop")


def one_engine(plane: PlaneFacts) -> bool:
    return plane.engines == 1


def four_engines(plane: PlaneFacts) -> bool:
    return plane.engines == 4


def boeing(plane: PlaneFacts) -> bool:
    return plane.maker == "BOEING"


def airbus(plane: PlaneFacts) -> bool:
    return plane.maker.startswith("AIRBUS")


def mcdonnell_douglas(plane: PlaneFacts) -> bool:
    return plane.maker.startswith("MCDONNELL")


def embraer(plane: PlaneFacts) -> bool:
    return plane.maker == "EMBRAER"


def before(year: int) -> Fact:
    return lambda plane: 0 < plane.year < year


def since(year: int) -> Fact:
    return lambda plane: plane.year >= year


def decade(year: int) -> Fact:
    return lambda plane: year <= plane.year < year + 10


def maker(name: str) -> Fact:
    return lambda plane: plane.maker == name


def model(beginning: str) -> Fact:
    return lambda plane: plane.model.startswith(beginning)


def of(airline: str) -> Fact:
    return lambda plane: plane.airline.startswith(airline)


def to(region: str) -> Fact:
    return lambda plane: region in plane.regions


def flies_to(airport: str) -> Fact:
    return lambda plane: airport in plane.destinations


WEST, FLORIDA, HAWAII, ALASKA, CARIBBEAN = "the west coast", "Florida", "Hawaii", "Alaska", "the Caribbean"
DELTA, UNITED, AMERICAN, SOUTHWEST = "Delta", "United", "American", "Southwest"
QUERIES: tuple[tuple[str, tuple[Fact, ...]], ...] = (
    ("wide-body planes built before 1990 that fly to the west coast", (wide, before(1990), to(WEST))),
    ("large twin-aisle jets from the eighties going to California", (wide, decade(1980), to(WEST))),
    ("wide-body planes of Delta that fly to the west coast", (wide, of(DELTA), to(WEST))),
    ("wide-body planes of United Airlines flying to Hawaii", (wide, of(UNITED), to(HAWAII))),
    ("which planes fly to Honolulu", (flies_to("HNL"),)),
    ("Hawaiian Airlines Airbus planes", (of("Hawaiian"), airbus)),
    ("jumbo jets with four engines", (four_engines, wide)),
    ("planes with four engines", (four_engines,)),
    ("helicopters", (helicopter,)),
    ("helicopters built before 1990", (helicopter, before(1990))),
    ("small propeller planes", (small, propeller)),
    ("single-engine propeller planes for a handful of people", (small, one_engine)),
    ("tiny old propeller planes from the seventies", (small, propeller, decade(1970))),
    ("planes built in the 1960s", (decade(1960),)),
    ("planes built in the 1970s", (decade(1970),)),
    ("oldest planes, built in the 1950s", (decade(1950),)),
    ("Cessna light aircraft", (maker("CESSNA"),)),
    ("Piper aircraft", (maker("PIPER"),)),
    ("Gulfstream business jets", (maker("GULFSTREAM AEROSPACE"),)),
    ("Boeing 777 wide-body planes", (model("777"),)),
    ("Boeing 787 Dreamliner built in the 2010s", (model("787"),)),
    ("Boeing 747", (model("747"),)),
    ("Airbus A330 wide-body planes", (model("A330"),)),
    ("Airbus A330 of Hawaiian Airlines to Hawaii", (model("A330"), of("Hawaiian"))),
    ("Boeing 767 of American Airlines built in the 1980s", (model("767"), of(AMERICAN), decade(1980))),
    ("Boeing 767 that flies to the Caribbean", (model("767"), to(CARIBBEAN))),
    ("wide-body planes that fly to Florida", (wide, to(FLORIDA))),
    ("wide-body Delta planes built in the 2000s", (wide, of(DELTA), decade(2000))),
    ("old wide-body planes built in the 1980s", (wide, decade(1980))),
    ("new wide-body planes built in the 2010s", (wide, since(2010))),
    ("McDonnell Douglas planes of American Airlines", (mcdonnell_douglas, of(AMERICAN))),
    ("McDonnell Douglas jets built in the 1990s that fly to Florida", (mcdonnell_douglas, decade(1990), to(FLORIDA))),
    ("DC-9 built in the 1970s", (model("DC-9"), decade(1970))),
    ("planes of Alaska Airlines built in the 2010s", (of("Alaska"), since(2010))),
    ("Alaska Airlines Boeing 737 to Seattle", (of("Alaska"), flies_to("SEA"))),
    ("planes that fly to Anchorage in Alaska", (to(ALASKA),)),
    ("Virgin America Airbus to San Francisco", (of("Virgin"), flies_to("SFO"))),
    ("Virgin America planes built in the 2010s", (of("Virgin"), since(2010))),
    ("JetBlue planes that fly to the Caribbean", (of("JetBlue"), to(CARIBBEAN))),
    ("JetBlue Embraer regional jets", (of("JetBlue"), embraer)),
    ("Frontier Airlines planes to Denver", (of("Frontier"),)),
    ("SkyWest regional jets", (of("SkyWest"), regional)),
    ("Mesa Airlines regional jets to Washington", (of("Mesa"), regional)),
    ("regional jets of ExpressJet built in the 2000s", (regional, of("ExpressJet"), decade(2000))),
    ("Southwest planes built in the 1980s", (of(SOUTHWEST), decade(1980))),
    ("Southwest planes built in the 2010s", (of(SOUTHWEST), since(2010))),
    ("United narrow-body planes built in the 2010s", (narrow, of(UNITED), since(2010))),
    ("United Boeing 757 built in the 1990s to the west coast", (model("757"), of(UNITED), decade(1990), to(WEST))),
    ("American Airlines planes to the Caribbean", (of(AMERICAN), to(CARIBBEAN))),
    ("US Airways Airbus A321 to Phoenix", (model("A321"), of("US Airways"), flies_to("PHX"))),
    ("AirTran Boeing 717 to Atlanta", (model("717"), of("AirTran"))),
    ("planes that fly to the ski resorts Eagle and Jackson Hole", (lambda p: bool({"EGE", "JAC"} & p.destinations),)),
    ("planes that fly to Portland, Oregon on the west coast", (flies_to("PDX"),)),
    ("Delta narrow-body planes built in the 2010s", (narrow, of(DELTA), since(2010))),
)  # fmt: skip
