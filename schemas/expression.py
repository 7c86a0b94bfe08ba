"""The expression language of context specs (filters, derived values): compiled once at start, then run on each row.

Python-like text, SQL-like nulls: `dep_delay > 15 and carrier in ("UA", "DL")`, `round(distance / air_time * 60, 1)`,
`"late" if arr_delay > 30 else "on time"`, `cancelled_at is null`, `column("order") is not null`.
"""

# Why our own: simpleeval and its kind walk the tree again for each row (about 20 µs where closures take 1), follow
# Python's nulls and floats (None + 1 raises, 0.1 + 0.2 is not 0.3), and find an unknown name only when a row comes by.

from __future__ import annotations

import ast
import difflib
import keyword
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from schemas import expression_values as values

TEXT_LENGTH_MAX = 2_000
DEPTH_MAX = 30
NODES_MAX = 300

Run = Callable[[Mapping[str, Any]], Any]

NUMBER_TYPES = ("decimal", "numeric", "integer", "float", "number")
"""Declared types whose text values are numbers: a column of such a type compares as a number, not as text."""

_CONSTANTS = {"null": None, "true": True, "false": False}
_ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: values.add,
    ast.Sub: values.subtract,
    ast.Mult: values.multiply,
    ast.Div: values.divide,
    ast.FloorDiv: values.floor_divide,
    ast.Mod: values.modulo,
}
_ORDERS: dict[type[ast.AST], frozenset[int]] = {
    ast.Eq: frozenset({0}),
    ast.NotEq: frozenset({-1, 1}),
    ast.Lt: frozenset({-1}),
    ast.LtE: frozenset({-1, 0}),
    ast.Gt: frozenset({1}),
    ast.GtE: frozenset({0, 1}),
}
_MANY = 50
# name: (function, fewest arguments, most arguments)
_FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int]] = {
    "abs": (values.absolute, 1, 1),
    "ceil": (values.ceil, 1, 1),
    "concat": (values.strict(values.concat), 1, _MANY),
    "contains": (values.contains, 2, 2),
    "ends_with": (values.ends_with, 2, 2),
    "floor": (values.floor, 1, 1),
    "json_get": (values.strict(values.json_get), 2, _MANY),
    "length": (values.length, 1, 1),
    "lower": (values.lower, 1, 1),
    "max": (values.strict(values.greatest), 1, _MANY),
    "min": (values.strict(values.least), 1, _MANY),
    "number": (values.number, 1, 1),
    "round": (values.round_to, 1, 2),
    "starts_with": (values.starts_with, 2, 2),
    "substring": (values.substring, 2, 3),
    "upper": (values.upper, 1, 1),
}
FUNCTION_NAMES = tuple(sorted([*_FUNCTIONS, "coalesce", "column"]))
_ALLOWED = (
    "allowed are literals, column names, + - * / // %, comparisons, and, or, not, in (…), is null (true, false), "
    f"x if c else y, and the functions {', '.join(FUNCTION_NAMES)}"
)
# A sign of another language in a text that does not parse, and what to write instead.
_HABITS = (
    (re.compile(r"<>"), "write != for 'not equal'"),
    (re.compile(r"\|\|"), "write concat(a, b) to join texts, or 'or' between conditions"),
    (re.compile(r"&&"), "write 'and' between conditions"),
    (re.compile(r"(?<![=!<>])=(?!=)"), "write == to compare"),
    (re.compile(r"!(?!=)"), "write 'not' to negate"),
    (re.compile(r"\b(AND|OR|NOT|IN|IS)\b"), "write and, or, not, in, is in small letters"),
    (re.compile(r"\b(case|CASE)\b"), 'write "x if condition else y"'),
)


_RESERVED = frozenset(keyword.kwlist) - {"and", "or", "not", "in", "is", "if", "else", "None", "True", "False"}


class ExpressionError(ValueError):
    """A text that is no expression. `position` is the 1-based character; the message says what is allowed there."""

    def __init__(self, message: str, position: int) -> None:
        self.message = message
        self.position = position
        super().__init__(f"at character {position}: {message}")


class Expression:
    """A compiled expression. `columns` are the columns it reads; `evaluate` never raises and gives a canonical value,
    an int or a Decimal; a column that the row lacks is null. A filter lets a row through only if the value is True."""

    __slots__ = ("_run", "columns", "text")

    def __init__(self, text: str, columns: frozenset[str], run: Run) -> None:
        self.text = text
        self.columns = columns
        self._run = run

    def evaluate(self, row: Mapping[str, Any]) -> Any:
        return values.finish(self._run(row))


def compile_expression(text: str, types: Mapping[str, str] | None = None) -> Expression:
    """Raises ExpressionError. `types` (column → declared type) names the columns whose text is a number."""
    if len(text) > TEXT_LENGTH_MAX:
        raise ExpressionError(f"longer than {TEXT_LENGTH_MAX} characters", TEXT_LENGTH_MAX)
    source = text.strip().replace("\n", " ")
    offset = len(text) - len(text.lstrip())
    if not source:
        raise ExpressionError(f"empty; {_ALLOWED}", 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # "\d" keeps its backslash
            tree = ast.parse(source, mode="eval")
    except SyntaxError as error:
        position = min(error.offset or len(source), len(source))
        raise ExpressionError(_syntax_message(source, error), position + offset) from None
    except (RecursionError, MemoryError, ValueError) as error:
        raise ExpressionError(f"cannot be read: {error or 'nested too deeply'}", 1) from None
    compiler = _Compiler(source, offset, types or {})
    run = compiler.compile(tree.body, 1)
    return Expression(text, frozenset(compiler.columns), run)


def _syntax_message(source: str, error: SyntaxError) -> str:
    unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "''", source)
    hint = next((hint for pattern, hint in _HABITS if pattern.search(unquoted)), None)
    word = next((word for word in re.findall(r"\w+", unquoted) if word in _RESERVED), None)
    if hint is None and word is not None:
        hint = f'{word} is a word of the language; write column("{word}") for a column of this name'
    return hint or f"{error.msg}; {_ALLOWED}"


class _Compiler:
    """Turns a syntax tree into nested closures, collecting the columns on the way."""

    def __init__(self, source: str, offset: int, types: Mapping[str, str]) -> None:
        self._source = source
        self._offset = offset
        self._types = types
        self._nodes = 0
        self.columns: set[str] = set()

    def compile(self, node: ast.expr, depth: int) -> Run:
        self._nodes += 1
        if depth > DEPTH_MAX:
            self._refuse(node, f"nested deeper than {DEPTH_MAX} levels")
        if self._nodes > NODES_MAX:
            self._refuse(node, f"more than {NODES_MAX} parts")
        handler = _HANDLERS.get(type(node))
        if handler is None:
            self._refuse(node, _refusal(node))
        return handler(self, node, depth)

    def constant(self, node: ast.Constant, depth: int) -> Run:
        value: Any = node.value
        if isinstance(value, str):
            if not value.isprintable() and any("\ud800" <= character <= "\udfff" for character in value):
                self._refuse(node, "half of a surrogate pair is no character")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            written = ast.get_source_segment(self._source, node) or ""
            # The text, not the float that Python made of it, so that no digit is lost.
            value = values.number(written.replace("_", "")) if written[:2].lower() not in ("0x", "0o", "0b") else value
            if value is None:
                self._refuse(node, f"a number may have {values.DIGITS_MAX} digits and no larger power of ten")
        elif value is not None and not isinstance(value, bool):
            self._refuse(node, f"literals are numbers, text, true, false and null; {_ALLOWED}")
        return lambda row: value

    def name(self, node: ast.Name, depth: int) -> Run:
        if node.id in _CONSTANTS:
            value = _CONSTANTS[node.id]
            return lambda row: value
        if node.id.lower() in _CONSTANTS:
            self._refuse(node, f"write {node.id.lower()} in small letters")
        # As it is written: Python makes other letters of some (µ, ﬁ), a database does not.
        return self._column(ast.get_source_segment(self._source, node) or node.id)

    def _column(self, name: str) -> Run:
        self.columns.add(name)
        declared = self._types.get(name, "")
        if declared.startswith(NUMBER_TYPES) and not declared.endswith("[]"):
            number = values.number_or_special
            return lambda row: number(row.get(name))
        return lambda row: row.get(name)

    def arithmetic(self, node: ast.BinOp, depth: int) -> Run:
        operation = _ARITHMETIC.get(type(node.op))
        if operation is None:
            self._refuse(node, f"this operator does not exist here; {_ALLOWED}")
        left, right = self.compile(node.left, depth + 1), self.compile(node.right, depth + 1)
        return lambda row: operation(left(row), right(row))

    def unary(self, node: ast.UnaryOp, depth: int) -> Run:
        operand = self.compile(node.operand, depth + 1)
        if isinstance(node.op, ast.Not):
            return _not(operand)
        if isinstance(node.op, ast.USub):
            return lambda row: values.negate(operand(row))
        if not isinstance(node.op, ast.UAdd):
            self._refuse(node, f"this operator does not exist here; {_ALLOWED}")
        return lambda row: values.number(operand(row))

    def logic(self, node: ast.BoolOp, depth: int) -> Run:
        parts = [self.compile(part, depth + 1) for part in node.values]
        return _logic(parts, decisive=isinstance(node.op, ast.Or))

    def choice(self, node: ast.IfExp, depth: int) -> Run:
        test, yes, no = (self.compile(part, depth + 1) for part in (node.test, node.body, node.orelse))
        return lambda row: yes(row) if test(row) is True else no(row)

    def comparison(self, node: ast.Compare, depth: int) -> Run:
        operands = [node.left, *node.comparators]
        links = [
            self._link(left, operator, right, depth + 1)
            for left, operator, right in zip(operands, node.ops, operands[1:], strict=False)
        ]
        return links[0] if len(links) == 1 else _logic(links, decisive=False)

    def _link(self, left: ast.expr, operator: ast.cmpop, right: ast.expr, depth: int) -> Run:
        if isinstance(operator, (ast.Is, ast.IsNot)):
            if not isinstance(right, ast.Name) or right.id not in _CONSTANTS:
                self._refuse(right, "after 'is' stands null, true, false or not …; compare other values with ==")
            operand, wanted, same = self.compile(left, depth), _CONSTANTS[right.id], isinstance(operator, ast.Is)
            return lambda row: (operand(row) is wanted) is same
        if isinstance(operator, (ast.In, ast.NotIn)):
            return self._membership(left, isinstance(operator, ast.NotIn), right, depth)
        if _is_null(left) or _is_null(right):
            self._refuse(right, "a comparison with null is always null; write 'is null' or 'is not null'")
        orders, compare = _ORDERS[type(operator)], values.compare
        first, second = self.compile(left, depth), self.compile(right, depth)

        def run(row: Mapping[str, Any]) -> bool | None:
            order = compare(first(row), second(row))
            return None if order is None else order in orders

        return run

    def _membership(self, left: ast.expr, negated: bool, right: ast.expr, depth: int) -> Run:
        if not isinstance(right, (ast.Tuple, ast.List)) or not right.elts:
            self._refuse(right, 'after \'in\' stands a list of values: carrier in ("UA", "DL")')
        value, items = self.compile(left, depth), [self.compile(item, depth) for item in right.elts]
        run = _in(value, items)
        return _not(run) if negated else run

    def call(self, node: ast.Call, depth: int) -> Run:
        if not isinstance(node.func, ast.Name) or node.keywords or any(isinstance(a, ast.Starred) for a in node.args):
            self._refuse(node, f"functions are called by name, with plain arguments: {', '.join(FUNCTION_NAMES)}")
        name, count = node.func.id, len(node.args)
        if name == "column":
            return self._named_column(node)
        function, fewest, most = _FUNCTIONS.get(name) or (None, 1, _MANY)
        if function is None and name != "coalesce":
            near = difflib.get_close_matches(name.lower(), FUNCTION_NAMES, 1)
            self._refuse(node, f"no function {name!r}; " + (f"did you mean {near[0]}?" if near else _ALLOWED))
        if not fewest <= count <= most:
            wanted = str(fewest) if fewest == most else f"{fewest} to {most}"
            self._refuse(node, f"{name} takes {wanted} argument{'' if wanted == '1' else 's'}, not {count}")
        arguments = [self.compile(argument, depth + 1) for argument in node.args]
        return _coalesce(arguments) if function is None else _call(function, arguments)

    def _named_column(self, node: ast.Call) -> Run:
        argument = node.args[0] if len(node.args) == 1 else None
        if not isinstance(argument, ast.Constant) or not isinstance(argument.value, str) or not argument.value:
            self._refuse(node, 'column takes the name of a column as text: column("order")')
        return self._column(argument.value)

    def _refuse(self, node: ast.expr, message: str) -> NoReturn:
        characters = len(self._source.encode()[: node.col_offset].decode(errors="ignore"))
        raise ExpressionError(message, characters + 1 + self._offset)


def _not(operand: Run) -> Run:
    def run(row: Mapping[str, Any]) -> bool | None:
        value = operand(row)
        return None if value is not True and value is not False else value is False

    return run


def _logic(parts: list[Run], decisive: bool) -> Run:
    """`or` when True decides, `and` when False does; null (or what is no boolean) leaves it open."""
    other = not decisive

    def run(row: Mapping[str, Any]) -> bool | None:
        result: bool | None = other
        for part in parts:
            value = part(row)
            if value is decisive:
                return bool(decisive)
            if value is not other:
                result = None
        return result

    return run


def _in(value: Run, items: list[Run]) -> Run:
    compare = values.compare

    def run(row: Mapping[str, Any]) -> bool | None:
        wanted = value(row)
        if wanted is None:
            return None
        result: bool | None = False
        for item in items:
            candidate = item(row)
            if candidate is None:
                result = None
            elif compare(wanted, candidate) == 0:
                return True
        return result

    return run


def _coalesce(arguments: list[Run]) -> Run:
    def run(row: Mapping[str, Any]) -> Any:
        for argument in arguments:
            value = argument(row)
            if value is not None:
                return value
        return None

    return run


def _call(function: Callable[..., Any], arguments: list[Run]) -> Run:
    if len(arguments) == 1:
        only = arguments[0]
        return lambda row: function(only(row))
    return lambda row: function(*[argument(row) for argument in arguments])


def _is_null(node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        return node.id.lower() == "null"
    return isinstance(node, ast.Constant) and node.value is None


def _refusal(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"a column has no parts; write json_get(…, {node.attr!r})"
    if isinstance(node, ast.Subscript):
        return "square brackets do not exist here; write json_get(column, position or name)"
    if isinstance(node, (ast.Tuple, ast.List)):
        return "a list of values stands only after 'in'"
    return f"this does not exist here; {_ALLOWED}"


_HANDLERS: dict[type[ast.expr], Callable[[_Compiler, Any, int], Run]] = {
    ast.Constant: _Compiler.constant,
    ast.Name: _Compiler.name,
    ast.BinOp: _Compiler.arithmetic,
    ast.UnaryOp: _Compiler.unary,
    ast.BoolOp: _Compiler.logic,
    ast.IfExp: _Compiler.choice,
    ast.Compare: _Compiler.comparison,
    ast.Call: _Compiler.call,
}
