"""Static analysis of PromQL: the labels and the number of series of an expression's result.

The parser is `promql-parser`; this module walks its tree and knows which labels each metric has and
how many values a label takes in the largest run. Faults are collected, not raised. It does not know
dashboards.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import promql_parser as parser

from moe_megatron.telemetry.catalog import metrics
from moe_megatron.telemetry.metric import ExpertDetail, Shape

LARGEST = Shape(layers=61, experts=256, ranks=256, expert_ranks=64, detail=ExpertDetail.FULL)
"""The run for which series are counted, with 61 layers of 256 experts like DeepSeek-V3."""

MOST_RUNS = 20
"""Runs for which the series of a dashboard of several runs are counted."""

IDENTITY = ("job", "cluster", "run", "instance")
"""Labels of every series of a run. A run has one target, so each has a single value."""

_NEED_COUNTER = {"rate", "irate", "increase"}
_FOR_BOTH = {"changes", "resets", "last_over_time", "present_over_time", "count_over_time"}
_CLOCKS = {"time", "timestamp"}
_COMPARISONS = {"==", "!=", ">", "<", ">=", "<="}
_SETS = {"and", "or", "unless"}


@dataclass(frozen=True, slots=True)
class Source:
    """A metric name that can be queried."""

    labels: Mapping[str, int]
    """Number of values of each label."""
    counter: bool = False
    """Whether it is a counter."""


def exported() -> dict[str, Source]:
    """All metrics that a run exports, and those that Prometheus adds itself."""
    identity = dict.fromkeys(IDENTITY, 1)
    sources = {
        "up": Source(identity),
        "scrape_duration_seconds": Source(identity),
        "ALERTS": Source({**identity, "alertname": 9, "alertstate": 2, "severity": 2}),
    }
    for metric in metrics():
        described = metric.name == "moe_run_info"
        own = {k: 1 if described else LARGEST.label_values(k) for k in metric.labels}
        labels = {**identity, **own}
        if metric.buckets:
            buckets = {**labels, "le": len(metric.buckets) + 1}
            sources[f"{metric.name}_bucket"] = Source(buckets, counter=True)
            sources[f"{metric.name}_sum"] = Source(labels, counter=True)
            sources[f"{metric.name}_count"] = Source(labels, counter=True)
        else:
            sources[metric.name] = Source(labels, counter=metric.type == "counter")
    return sources


def of_many_runs(sources: Mapping[str, Source]) -> dict[str, Source]:
    """The sources, as a Prometheus that scrapes many runs has them."""
    return {
        name: Source({**source.labels, "run": MOST_RUNS}, source.counter)
        for name, source in sources.items()
    }


@dataclass(frozen=True, slots=True)
class Answer:
    """The shape of an expression's result; a scalar has no series."""

    labels: Mapping[str, int]
    """Number of values of each label."""
    scalar: bool = False
    limit: int | None = None
    """Largest number of series at one instant, if `topk` limits it; over a range they may vary."""

    def series(self, *, instant: bool = False) -> int:
        """Largest number of series of the result."""
        number = prod(self.labels.values())
        return min(number, self.limit) if instant and self.limit is not None else number

    def spread(self) -> set[str]:
        """Labels in which its series differ."""
        return {label for label, values in self.labels.items() if values > 1}


_SCALAR = Answer({}, scalar=True)


@dataclass(frozen=True, slots=True)
class Analysis:
    """The analysis of one expression."""

    answer: Answer
    names: frozenset[str]
    """Names of the metrics that it queries."""
    selectors: tuple[frozenset[tuple[str, str]], ...]
    """Labels that each selector requires, with their values."""
    problems: tuple[str, ...]
    """What is wrong with it, as sentences."""


def analyze(expr: str, sources: Mapping[str, Source]) -> Analysis:
    """Analyze an expression that has no Grafana variables left outside of strings."""
    reader = _Reader(sources)
    try:
        tree = parser.parse(expr)
    except ValueError as error:
        fault = f"is not PromQL: {str(error).splitlines()[0]}"
        return Analysis(_SCALAR, frozenset(), (), (fault,))
    answer = reader.read(tree)
    return Analysis(
        answer, frozenset(reader.names), tuple(reader.selectors), tuple(reader.problems)
    )


class _Reader:
    """Evaluates the labels of a tree from the leaves up."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = sources
        self.names: set[str] = set()
        self.selectors: list[frozenset[tuple[str, str]]] = []
        self.problems: list[str] = []

    def read(self, node: Any) -> Answer:
        """The result of a node, by the reader for its type."""
        readers: dict[type, Callable[[Any], Answer]] = {
            parser.VectorSelector: self._selector,
            parser.MatrixSelector: self._window,
            parser.AggregateExpr: self._aggregation,
            parser.BinaryExpr: self._binary,
            parser.Call: self._call,
            parser.ParenExpr: lambda paren: self.read(paren.expr),
            parser.UnaryExpr: lambda unary: self.read(unary.expr),
            parser.NumberLiteral: lambda _: _SCALAR,
            parser.StringLiteral: lambda _: _SCALAR,
        }
        if type(node) not in readers:
            self.problems.append(f"{type(node).__name__} is not understood by this check")
            return _SCALAR
        return readers[type(node)](node)

    def _selector(self, node: Any, function: str | None = None) -> Answer:
        source = self._source(node, function)
        labels = dict(source.labels)
        required = [m for m in node.matchers.matchers if m.op == parser.MatchOp.Equal]
        self.selectors.append(frozenset((m.name, m.value) for m in required))
        for matcher in node.matchers.matchers:
            if matcher.name not in labels:
                self.problems.append(f"{node.name} has no label {matcher.name}")
            elif matcher.op == parser.MatchOp.Equal:
                labels[matcher.name] = 1
        return Answer(labels)

    def _source(self, node: Any, function: str | None) -> Source:
        name = node.name or "a selector without a name"
        if name not in self._sources:
            self.problems.append(f"{name} is not exported by any run (telemetry/catalog.py)")
            labels = {matcher.name: 1 for matcher in node.matchers.matchers}
            return Source(dict.fromkeys(IDENTITY, 1) | labels)
        self.names.add(name)
        source = self._sources[name]
        if source.counter and function not in _NEED_COUNTER | _FOR_BOTH:
            self.problems.append(f"{name} is a counter and needs rate() or increase()")
        if not source.counter and function in _NEED_COUNTER:
            self.problems.append(f"{name} is a gauge, which {function}() does not accept")
        return source

    def _window(self, node: Any) -> Answer:
        return self._selector(node.vector_selector)

    def _call(self, node: Any) -> Answer:
        name = node.func.name
        if name in _CLOCKS:
            self.problems.append(
                f"{name}() is the clock of Prometheus' machine, which may not agree with that of "
                "the run; export an age instead"
            )
        arguments = [
            self._selector(argument.vector_selector, name)
            if isinstance(argument, parser.MatrixSelector)
            else self.read(argument)
            for argument in node.args
        ]
        vectors = [argument for argument in arguments if not argument.scalar]
        if not vectors:
            return Answer({}) if name == "vector" else _SCALAR
        labels = dict(vectors[0].labels)
        if name == "histogram_quantile" and labels.pop("le", None) is None:
            self.problems.append("histogram_quantile() needs the label le")
        return Answer(labels)

    def _aggregation(self, node: Any) -> Answer:
        inner = self.read(node.expr)
        how, modifier = str(node.op), node.modifier
        if how in {"topk", "bottomk"}:
            return Answer(inner.labels, limit=int(node.param.val))
        if modifier is None:
            return Answer({})
        if modifier.type == parser.AggModifierType.Without:
            return Answer({k: n for k, n in inner.labels.items() if k not in modifier.labels})
        for label in modifier.labels:
            if label not in inner.labels:
                self.problems.append(f"{how} by {label}: there is no such label")
        return Answer({k: n for k, n in inner.labels.items() if k in modifier.labels})

    def _binary(self, node: Any) -> Answer:
        left, right = self.read(node.lhs), self.read(node.rhs)
        if left.scalar or right.scalar:
            return right if left.scalar else left
        operator = str(node.op)
        on = self._matched_labels(node, left, right, operator)
        if operator == "or":
            return Answer({k: max(n, right.labels[k]) for k, n in left.labels.items()
                           if k in right.labels})  # fmt: skip
        if operator in _SETS:
            return left
        return self._joined(node, left, right, on)

    def _matched_labels(self, node: Any, left: Answer, right: Answer, operator: str) -> set[str]:
        matching = None if node.modifier is None else node.modifier.matching
        if matching is None:
            if set(left.labels) != set(right.labels) and operator != "or":
                different = sorted(set(left.labels) ^ set(right.labels))
                self.problems.append(
                    f"'{operator}' never matches: only one side has {', '.join(different)}"
                )
            return set(left.labels)
        if matching.type == parser.LabelModifierType.Exclude:
            return (set(left.labels) | set(right.labels)) - set(matching.labels)
        for label in matching.labels:
            if label not in left.labels or label not in right.labels:
                self.problems.append(f"on ({label}): only one side of '{operator}' has that label")
        return set(matching.labels)

    def _joined(self, node: Any, left: Answer, right: Answer, on: set[str]) -> Answer:
        card = None if node.modifier is None else node.modifier.card
        many_left = card == parser.VectorMatchCardinality.ManyToOne
        many_right = card == parser.VectorMatchCardinality.OneToMany
        sides = (("left", left, many_left), ("right", right, many_right))
        for side, answer, may_be_many in sides:
            if not may_be_many and (extra := answer.spread() - on):
                self.problems.append(
                    f"the {side} side of '{node.op}' has many series for one of the other: they "
                    f"differ in {', '.join(sorted(extra))}"
                )
        if not many_left and not many_right:
            # Filters keep all labels of the left side, arithmetic keeps the matched ones.
            keep = set(left.labels) if str(node.op) in _COMPARISONS else on
            return Answer({k: n for k, n in left.labels.items() if k in keep})
        many, one = (left, right) if many_left else (right, left)
        added = {k: one.labels.get(k, 1) for k in node.modifier.group_labels or ()}
        return Answer({**many.labels, **added})


_VARIABLES = {
    "$__rate_interval": "1m",
    "$__range": "1h",
    "$price": "1",
}
_IN_STRING = re.compile(r'"[^"]*"')


def without_variables(expr: str) -> str:
    """The expression with values in place of the variables outside of strings."""
    for name, value in _VARIABLES.items():
        expr = expr.replace(name, value)
    return expr


def variables(text: str) -> set[str]:
    """Grafana variables that a text uses: $name, ${name} and ${name:format}."""
    return set(re.findall(r"\$\{?(\w+(?:\.\w+)*)", text))


def windows(expr: str) -> set[str]:
    """The windows of an expression, which are in brackets."""
    return set(re.findall(r"\[([^\]]*)\]", _IN_STRING.sub('""', expr)))
