"""The plan: a context spec compiled into tables, nodes and relations with positions instead of names.

A *node* is the root or a section; a *table* stores the columns that any node needs; a *relation* keeps, per join value,
which rows of a table have it. A *unit* is what is assembled and stored in one piece: the root's bundle, or the fragment
of a linked section. Everything here is made once, from the spec and the composition of its sections alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import msgspec

from pipeline import sortable
from pipeline.columns import columns_by_table
from pipeline.composition import default_composition
from pipeline.core.errors import ConfigError
from pipeline.counters import COUNT_OFFSET, ROWS, counter_field
from pipeline.joins import JoinText, join_text
from pipeline.masks import mask
from schemas.bundle import ROOT_UNIT
from schemas.context import Aggregate, ContextSpec, FieldSpec, Section
from schemas.expression import compile_expression
from schemas.source_format import SourceFormat
from schemas.topics import table_topic
from schemas.types import NESTING_MAX, is_decimal, nested_too_deep

Values = list[Any]
Predicate = Callable[[Values], bool]
Getter = Callable[[Values], Any]
CountTokens = Callable[[str], int]

_INTEGER_MAX = 1 << 64
"""Up to here integers encode as they are; Python refuses to print the longest."""


@dataclass(slots=True)
class TablePlan:
    """A source table as stored: which columns, in which order, and the relations that its rows take part in."""

    name: str
    source: str
    table: str
    key_columns: tuple[str, ...]
    topic: str
    format: SourceFormat | None = None
    columns: tuple[str, ...] = ()
    types: dict[str, str] = field(default_factory=dict)
    decimals: frozenset[str] = frozenset()
    """Columns declared as decimals: in keys and joins 1, 1.0 and 1.00 are one value, as SQL compares them."""
    relations: list[RelationPlan] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    partition_columns: int = 1
    """How many of the key columns make up the partition key of a wide-column table."""

    def positions(self, columns: tuple[str, ...] | list[str]) -> tuple[int, ...]:
        return tuple(self.columns.index(column) for column in columns)


@dataclass(slots=True)
class OrderPlan:
    """An ordered index: encoders of the sort columns and of the primary key's, the last tie-break; and what an entry
    carries (None: the child's key text).

    A list without sections of its own carries each item's final bytes: reading the list is then one range of one index.
    """

    columns: tuple[tuple[int, Callable[[Any], bytes]], ...]
    payload: Callable[[Values], bytes] | None
    skip_null: bool
    where: Predicate | None


@dataclass(slots=True)
class CounterPlan:
    """One aggregate that is a sum of contributions: count, sum, avg, count_distinct."""

    identifier: int
    function: str
    column: int | None
    where: Predicate | None


@dataclass(slots=True)
class RelationPlan:
    """Rows of one table by join value. `place` is its position in the table's links; `decimals` as in join_text."""

    index: int
    place: int
    columns: tuple[int, ...]
    decimals: tuple[bool, ...]
    join: JoinText
    accept: Predicate | None = None
    orders: tuple[OrderPlan, ...] = ()
    group: tuple[int, ...] = ()
    counters: tuple[tuple[CounterPlan, bytes], ...] = ()
    """Each with the end of its field that counts rows."""

    @property
    def plain(self) -> bool:
        """Membership alone: no order, no counters."""
        return not self.orders and not self.counters


@dataclass(slots=True)
class AggregatePlan:
    """How one aggregate is read back: from counters, or from the first entry of ordered index `top`."""

    name: str
    spec: Aggregate
    identifier: int
    top: int | None


@dataclass(slots=True)
class Node:
    """The root or a section. `unit` is where it is assembled; `join` positions are in the parent's values."""

    path: str
    name: str
    table: TablePlan
    parent: Node | None
    section: Section | None
    linked: bool
    unit: str
    accept: Predicate | None
    fields: Callable[[Values], dict[str, Any]] = dict
    children: list[Node] = field(default_factory=list)
    join: JoinText = field(default=lambda values: None)
    by_key: bool = False
    opening: bytes = b""
    relation: RelationPlan | None = None
    parent_relation: RelationPlan | None = None
    traced: bool = False
    """A linked section that texts are made from: its change is followed up to the bundles that show it."""
    aggregates: list[AggregatePlan] = field(default_factory=list)
    number: int = 0
    """Its place among the nodes of the plan."""
    names_rows: bool = False
    """Rows are read where their bytes alone would do, because the bundle names them."""

    @property
    def kind(self) -> str:
        """`object`, `list`, `aggregates` or `groups`."""
        if self.section is None or self.section.kind == "one":
            return "object"
        if not self.section.aggregates:
            return "list"
        return "groups" if self.section.group_by else "aggregates"

    @property
    def leaf(self) -> bool:
        """Its items are stored as final bytes in the index."""
        return self.relation is not None and not self.aggregates and not self.children and not self.names_rows

    @property
    def limit(self) -> int:
        return (self.section.limit or 1000) if self.section and self.section.kind == "many" else 1


@dataclass(slots=True)
class Plan:
    """A compiled context. `units` maps a unit's name to the node at its top. `count` gives the tokens of a part of a
    bundle's bytes, where the spec names a tokenizer."""

    spec: ContextSpec
    tables: dict[str, TablePlan]
    nodes: list[Node]
    relations: list[RelationPlan]
    units: dict[str, Node]
    topics: dict[str, TablePlan]
    tenant: int | None = None
    count: CountTokens | None = None

    @property
    def root(self) -> Node:
        return self.nodes[0]


_OWN_FORMATS: Mapping[str, SourceFormat] = {}


def compile_plan(
    spec: ContextSpec,
    compose: Mapping[str, str] | None = None,
    mask_secret: bytes = b"",
    formats: Mapping[str, SourceFormat] = _OWN_FORMATS,
    traced: Sequence[str] = (),
    count: CountTokens | None = None,
) -> Plan:
    """Raises ConfigError for what only shows when entities meet (e.g. two entities of one table with other keys).

    `compose` maps section paths to "copy" or "link" for sections that the spec leaves to `auto`. `formats`: of sources
    whose topics others fill, by name. `traced`: see Definition. `count` counts tokens, for plans that write bundles.
    """
    compiler = _Compiler(spec, {**default_composition(spec), **(compose or {})}, mask_secret, formats, traced)
    plan = compiler.compile()
    plan.count = count
    return plan


class _Compiler:
    def __init__(
        self,
        spec: ContextSpec,
        compose: Mapping[str, str],
        mask_secret: bytes,
        formats: Mapping[str, SourceFormat],
        traced: Sequence[str],
    ) -> None:
        self.spec, self.compose, self.mask_secret, self.formats = spec, compose, mask_secret, formats
        self.traced = frozenset(traced)
        self.tables: dict[str, TablePlan] = {}
        self.relations: list[RelationPlan] = []
        self.nodes: list[Node] = []

    def compile(self) -> Plan:
        self._collect_tables()
        root_table = self._table(self.spec.root)
        root_entity = self.spec.entities[self.spec.root]
        root = Node("", "", root_table, None, None, False, ROOT_UNIT, self._predicate(root_table, root_entity.filter))
        root.fields = self._fields(root_table, self.spec.fields)
        self._add(root)
        self._sections(root, self.spec.root, self.spec.sections)
        units = {node.path: node for node in self.nodes if node is root or node.linked}
        topics = self._topics()
        tenant = root_table.columns.index(self.spec.tenant) if self.spec.tenant else None
        return Plan(self.spec, self.tables, self.nodes, self.relations, units, topics, tenant)

    def _collect_tables(self) -> None:
        for name, entity in self.spec.entities.items():
            table_name = f"{entity.source}.{entity.table}"
            form = self.formats.get(entity.source)
            topic = table_topic(form.topic_prefix if form else entity.source, entity.table)
            plan = TablePlan(table_name, entity.source, entity.table, tuple(entity.key), topic, form)
            plan.partition_columns = len(entity.partition_key) or 1
            known = self.tables.setdefault(table_name, plan)
            if known.key_columns != plan.key_columns:
                keys = f"{list(known.key_columns)} and {list(plan.key_columns)}"
                raise ConfigError([f"entity {name}: table {entity.table} has two keys, {keys}; give it one"])
            known.types.update(entity.types)
        for table_name, columns in columns_by_table(self.spec).items():
            table = self.tables[table_name]
            rest = sorted(columns - set(table.key_columns))
            table.columns = (*table.key_columns, *rest)
            table.decimals = frozenset(column for column, declared in table.types.items() if is_decimal(declared))

    def _topics(self) -> dict[str, TablePlan]:
        topics: dict[str, TablePlan] = {}
        for table in self.tables.values():
            other = topics.setdefault(table.topic, table)
            if other is not table:
                text = f"{other.name} and {table.name} both come on topic {table.topic}; mend topic_prefix of a source"
                raise ConfigError([f"context {self.spec.context}: {text}"])
        return topics

    def _table(self, entity_name: str) -> TablePlan:
        entity = self.spec.entities[entity_name]
        return self.tables[f"{entity.source}.{entity.table}"]

    def _add(self, node: Node) -> None:
        node.number, node.names_rows = len(self.nodes), self.spec.names_rows
        self.nodes.append(node)
        node.table.nodes.append(node)

    def _sections(self, parent: Node, parent_entity: str, sections: Mapping[str, Section]) -> None:
        for name, section in sections.items():
            path = f"{parent.path}.{name}" if parent.path else name
            inside_link = parent.unit != ROOT_UNIT
            linked = self.compose[path] == "link" and not inside_link
            table = self._table(section.entity)
            entity = self.spec.entities[section.entity]
            accept = _both(self._predicate(table, entity.filter), self._predicate(table, section.filter))
            node = Node(path, name, table, parent, section, linked, path if linked else parent.unit, accept)
            node.fields = self._fields(table, section.fields)
            node.opening = b',"%b":' % name.encode()
            node.traced = linked and path in self.traced
            parent.children.append(node)
            self._add(node)
            self._sections(node, section.entity, section.sections)
            self._join(node, section)

    def _join(self, node: Node, section: Section) -> None:
        """Positions of the join on both sides, in one order: the key's, where the join is by a primary key."""
        assert node.parent is not None
        own, parents = list(section.on), node.parent.table
        for key in (node.table.key_columns, parents.key_columns):
            side = own if key is node.table.key_columns else list(section.on.values())
            if set(side) == set(key) and len(side) == len(key):
                pairs = sorted(section.on.items(), key=lambda pair: key.index(pair[0 if side is own else 1]))
                own = [pair[0] for pair in pairs]
                break
        parent_columns = tuple(section.on[column] for column in own)
        positions = parents.positions(parent_columns)
        # Declared on one side is enough. A key text stands in for the join value only where it is spelt the same.
        theirs = tuple(column in parents.decimals for column in parent_columns)
        ours = tuple(column in node.table.decimals for column in own)
        decimals = tuple(map(operator.or_, ours, theirs))
        node.join = join_text(positions, decimals)
        node.by_key = section.kind == "one" and tuple(own) == node.table.key_columns and ours == decimals
        if not node.by_key:
            node.relation = self._relation(node, own, decimals, section)
        if (not node.linked or node.traced) and (parent_columns != parents.key_columns or theirs != decimals):
            node.parent_relation = self._plain_relation(parents, positions, decimals)

    def _plain_relation(self, table: TablePlan, columns: tuple[int, ...], decimals: tuple[bool, ...]) -> RelationPlan:
        for relation in table.relations:
            if relation.plain and relation.columns == columns and relation.decimals == decimals:
                return relation
        join = join_text(columns, decimals)
        return self._register(table, RelationPlan(len(self.relations), len(table.relations), columns, decimals, join))

    def _register(self, table: TablePlan, relation: RelationPlan) -> RelationPlan:
        self.relations.append(relation)
        table.relations.append(relation)
        return relation

    def _relation(self, node: Node, own: list[str], decimals: tuple[bool, ...], section: Section) -> RelationPlan:
        table = node.table
        columns = table.positions(own)
        place, join = len(table.relations), join_text(columns, decimals)
        relation = RelationPlan(len(self.relations), place, columns, decimals, join, node.accept)
        if section.aggregates:
            relation.group = table.positions(section.group_by)
            self._aggregates(node, relation, section)
        else:
            order = self._order(table, section.order_by)
            payload = None if node.children or node.names_rows else _encoded(node.fields)
            relation.orders = (OrderPlan(order, payload, False, None),)
        return self._register(table, relation)

    def _aggregates(self, node: Node, relation: RelationPlan, section: Section) -> None:
        table = node.table
        orders: list[OrderPlan] = []
        counters: list[CounterPlan] = []
        for identifier, (name, spec) in enumerate(section.aggregates.items()):
            where = self._predicate(table, spec.where)
            column = table.columns.index(spec.column) if spec.column else None
            top = None
            if spec.function in ("min", "max", "latest"):
                top = len(orders)
                assert spec.column is not None
                by = ("" if spec.function == "min" else "-") + (spec.by or spec.column)
                assert column is not None
                order, payload = self._order(table, [by]), _encoded(operator.itemgetter(column))
                orders.append(OrderPlan(order, payload, spec.function != "latest", where))
            elif spec.function != "share":
                counters.append(CounterPlan(identifier, spec.function, column, where))
            node.aggregates.append(AggregatePlan(name, spec, identifier, top))
        counters.append(CounterPlan(ROWS, "count", None, None))
        fields = (counter_field(b"", COUNT_OFFSET + counter.identifier) for counter in counters)
        relation.orders, relation.counters = tuple(orders), tuple(zip(counters, fields, strict=True))

    def _order(self, table: TablePlan, order_by: list[str]) -> tuple[tuple[int, Callable[[Any], bytes]], ...]:
        def encoder(column: str, encode: Callable[[Any], bytes]) -> tuple[int, Callable[[Any], bytes]]:
            return table.columns.index(column), sortable.typed(encode, table.types.get(column))

        up, down = sortable.encode_value, sortable.encode_descending
        sorts = [encoder(text.removeprefix("-"), down if text.startswith("-") else up) for text in order_by]
        return (*sorts, *(encoder(column, up) for column in table.key_columns))

    def _predicate(self, table: TablePlan, text: str | None) -> Predicate | None:
        if text is None:
            return None
        value = _expression_getter(table, text)
        return lambda values: value(values) is True

    def _fields(self, table: TablePlan, fields: list[FieldSpec]) -> Callable[[Values], dict[str, Any]]:
        """The object of a row, in the order of the spec; plain columns are picked without a call each."""
        names = tuple(spec.name for spec in fields)
        positions = [_plain_column(table, spec) for spec in fields]
        computed = [
            (spec.name, self._getter(table, spec)) for spec, at in zip(fields, positions, strict=True) if at is None
        ]
        if len(fields) < 2:  # itemgetter gives a tuple from two on
            getters = [(spec.name, self._getter(table, spec)) for spec in fields]
            return lambda values: {name: getter(values) for name, getter in getters}
        # A computed field takes its place in the order with some column's value, and its own value after that.
        pick = operator.itemgetter(*(0 if position is None else position for position in positions))
        if not computed:
            return lambda values: dict(zip(names, pick(values), strict=True))

        def build(values: Values) -> dict[str, Any]:
            made = dict(zip(names, pick(values), strict=True))
            for name, getter in computed:
                made[name] = getter(values)
            return made

        return build

    def _getter(self, table: TablePlan, spec: FieldSpec) -> Getter:
        if spec.value is not None:
            getter = _plain(_expression_getter(table, spec.value))
        else:
            getter = _column_getter(table, spec.column or spec.name)
        if spec.mask is not None:
            getter = _masked(getter, spec.mask, self.mask_secret)
        return _defaulted(getter, spec.default) if spec.default is not None else getter


def _plain_column(table: TablePlan, spec: FieldSpec) -> int | None:
    column = spec.column or spec.name
    if spec.value or spec.mask or spec.default is not None or table.types.get(column) == "json":
        return None
    return table.columns.index(column)


def _encoded(get: Callable[[Values], Any]) -> Callable[[Values], bytes]:
    encode = msgspec.json.encode
    return lambda values: encode(get(values))


def _both(first: Predicate | None, second: Predicate | None) -> Predicate | None:
    if first is None or second is None:
        return first or second
    return lambda values: first(values) and second(values)


def plain_number(value: Any) -> Any:
    """A Decimal, or an integer that takes more than 64 bits, as a JSON number without exponent; the rest as it is."""
    if value.__class__ is int and abs(value) > _INTEGER_MAX:
        value = Decimal(value)
    return msgspec.Raw(format(value, "f").encode()) if value.__class__ is Decimal else value


def _plain(getter: Getter) -> Getter:
    return lambda values: plain_number(getter(values))


def _masked(getter: Getter, kind: str, secret: bytes) -> Getter:
    return lambda values: mask(kind, getter(values), secret)


def _defaulted(getter: Getter, default: Any) -> Getter:
    def get(values: Values) -> Any:
        value = getter(values)
        return default if value is None else value

    return get


def _column_getter(table: TablePlan, column: str) -> Getter:
    position = table.columns.index(column)
    if table.types.get(column) == "json":
        return lambda values: parsed_json(values[position])
    return lambda values: values[position]


def parsed_json(value: Any) -> Any:
    """A json column's text as a JSON value; text that isn't JSON, or is nested too deep, stays text."""
    if not isinstance(value, str):
        return value
    try:
        parsed = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return value
    if value.count("[") + value.count("{") > NESTING_MAX and nested_too_deep(parsed):
        return value
    return parsed


def _expression_getter(table: TablePlan, text: str) -> Getter:
    expression = compile_expression(text, table.types)
    names = [(column, table.columns.index(column)) for column in sorted(expression.columns)]
    return lambda values: expression.evaluate({name: values[position] for name, position in names})
