"""PromQL, as much of it as our dashboard and alerts use, read strictly: what is not understood is an error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.]))|(?P<duration>(?:\d+(?:ms|[smhdwy]))+|\$__rate_interval)"
    r"|(?P<string>\"(?:[^\"\\]|\\.)*\")|(?P<word>[a-zA-Z_:][a-zA-Z0-9_:]*)"
    r"|(?P<sign>=~|!~|!=|==|>=|<=|[-+*/%^(){}\[\],=<>]))"
)
AGGREGATIONS = {"sum", "min", "max", "avg", "count", "stddev", "group"}
# Function → its arguments: r a range, v an instant vector, n a number.
FUNCTIONS = {
    "rate": "r",
    "increase": "r",
    "delta": "r",
    "deriv": "r",
    "changes": "r",
    "resets": "r",
    "max_over_time": "r",
    "min_over_time": "r",
    "avg_over_time": "r",
    "histogram_quantile": "nv",
    "clamp_min": "vn",
    "clamp_max": "vn",
    "abs": "v",
    "absent": "v",
    "time": "",
    "vector": "n",
}
OPERATORS = {"+", "-", "*", "/", "%", "^", "==", "!=", ">", "<", ">=", "<=", "and", "or", "unless"}


class NotPromQL(Exception):
    """Says what was expected, and where."""


@dataclass
class Selector:
    """`matchers` are triples of label, operator and value."""

    metric: str
    matchers: list[tuple[str, str, str]]
    ranged: bool = False


@dataclass
class Node:
    """`name` is the aggregation, the function or the operator; `labels` those of `by`."""

    name: str
    children: list[Node | Selector | float] = field(default_factory=list)
    labels: tuple[str, ...] | None = None


Expression = Node | Selector | float


def parse(text: str) -> Expression:
    """Read a whole expression. Raises NotPromQL."""
    reader = _Reader(text)
    expression = reader.binary()
    if reader.kind != "end":
        raise reader.wrong("the end")
    return expression


def selectors(expression: Expression) -> Iterator[Selector]:
    """All selectors of an expression."""
    if isinstance(expression, Selector):
        yield expression
    elif isinstance(expression, Node):
        for child in expression.children:
            yield from selectors(child)


def nodes(expression: Expression) -> Iterator[Node]:
    """All calls, aggregations and operators of an expression."""
    if isinstance(expression, Node):
        yield expression
        for child in expression.children:
            yield from nodes(child)


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._end = 0
        self.kind, self.value = "", ""
        self.advance()

    def wrong(self, expected: str) -> NotPromQL:
        return NotPromQL(
            f"expected {expected}, found {self.value or 'the end'!r} before column {self._end}: {self._text}"
        )

    def advance(self) -> str:
        before = self.value
        found = TOKEN.match(self._text, self._end)
        if found is not None:
            self._end, self.kind, self.value = found.end(), found.lastgroup or "", found[found.lastgroup or ""]
        elif self._text[self._end :].strip():
            raise NotPromQL(f"no token at column {self._end}: {self._text}")
        else:
            self.kind, self.value = "end", ""
        return before

    def take(self, value: str) -> None:
        if self.value != value or self.kind == "string":
            raise self.wrong(value)
        self.advance()

    def take_kind(self, kind: str) -> str:
        if self.kind != kind:
            raise self.wrong(f"a {kind}")
        return self.advance()

    def binary(self) -> Expression:
        left = self.unary()
        while self.kind in {"sign", "word"} and self.value in OPERATORS:
            operator = self.advance()
            labels = self.grouping() if self.value in {"on", "ignoring"} else None
            left = Node(operator, [left, self.unary()], labels)
        return left

    def unary(self) -> Expression:
        if self.value == "(":
            self.advance()
            inside = self.binary()
            self.take(")")
            return inside
        if self.kind == "number":
            return float(self.advance())
        word = self.take_kind("word")
        if word in AGGREGATIONS:
            return self.aggregation(word)
        if word in FUNCTIONS:
            return self.call(word)
        return self.selector(word)

    def aggregation(self, name: str) -> Node:
        labels = self.grouping() if self.value == "by" else ()
        self.take("(")
        inside = self.binary()
        self.take(")")
        return Node(name, [inside], self.grouping() if self.value == "by" else labels)

    def grouping(self) -> tuple[str, ...]:
        self.advance()
        self.take("(")
        labels = [self.take_kind("word")]
        while self.value == ",":
            self.advance()
            labels.append(self.take_kind("word"))
        self.take(")")
        return tuple(labels)

    def call(self, name: str) -> Node:
        self.take("(")
        arguments: list[Expression] = []
        for wanted in FUNCTIONS[name]:
            if arguments:
                self.take(",")
            argument = self.binary()
            if _kind(argument) != wanted:
                raise NotPromQL(f"{name} takes {FUNCTIONS[name]!r}, not {_kind(argument)!r}: {self._text}")
            arguments.append(argument)
        self.take(")")
        return Node(name, arguments)

    def selector(self, metric: str) -> Selector:
        matchers = []
        if self.value == "{":
            self.advance()
            while self.value != "}":
                label = self.take_kind("word")
                if self.value not in {"=", "!=", "=~", "!~"}:
                    raise self.wrong("an operator of labels")
                operator = self.advance()
                matchers.append((label, operator, self.take_kind("string")[1:-1]))
                if self.value != "}":
                    self.take(",")
            self.advance()
        ranged = self.value == "["
        if ranged:
            self.advance()
            self.take_kind("duration")
            self.take("]")
        return Selector(metric, matchers, ranged)


def _kind(expression: Expression) -> str:
    if isinstance(expression, float):
        return "n"
    return "r" if isinstance(expression, Selector) and expression.ranged else "v"
