"""From the records of a bench to the rows of its tables: means over seeds, and what they prove."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from moe_megatron.benchmarks.case import REFERENCE, Case
from moe_megatron.benchmarks.record import BenchFolder, RunRecord
from moe_megatron.benchmarks.setup import CAPACITY, Setup
from moe_megatron.benchmarks.statistics import Interval, Verdict, paired, t_interval, verdict

SAME_WORK = 0.05
"""How far experts per token may be from top_k, as a share of it, to count as equal work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What is known of a case."""

    case: Case
    records: dict[int, RunRecord]
    """By seed; at least one."""
    difference: Interval | None
    """Of the held-out loss from that of the reference, seed by seed."""
    verdict: Verdict
    step_times: list[float]
    """Milliseconds, of each turn."""

    def mean(self, value: Callable[[RunRecord], float]) -> float:
        """The mean over seeds."""
        return fmean(value(it) for it in self.records.values())

    @property
    def loss(self) -> Interval:
        """The held-out loss over seeds."""
        return t_interval([it.loss for it in self.records.values()])

    @property
    def step_time(self) -> float:
        """Median of the turns; NaN if it was not measured."""
        return median(self.step_times) if self.step_times else math.nan

    def does_same_work(self, top_k: int) -> bool:
        """Whether its tokens have about as many experts as they should."""
        asked = self.mean(lambda it: it.experts_per_token)
        return abs(asked - top_k) <= SAME_WORK * top_k


def rows_of(folder: BenchFolder, cases: Sequence[Case]) -> list[Row]:
    """A row for each case with a result; those of one verdict stand together, in order of name.

    So the order claims no more than the intervals do.

    Raises:
        MoEError: A file is damaged, or is that of another case.
    """
    records = {id(case): folder.records_of(case) for case in cases}
    reference = next((it for it in cases if it.router == REFERENCE), cases[0])
    losses = {seed: it.loss for seed, it in records[id(reference)].items()}
    rows = []
    for case in cases:
        found = records[id(case)]
        if not found:
            continue
        difference = paired({seed: it.loss for seed, it in found.items()}, losses)
        said: Verdict = "one seed alone" if difference is None else verdict(difference)
        rows.append(
            Row(
                case=case,
                records=found,
                difference=None if case is reference else difference,
                verdict="reference" if case is reference else said,
                step_times=folder.step_times(case),
            )
        )
    return rows


_ORDER: tuple[Verdict, ...] = (
    "lower", "reference", "not distinguishable", "one seed alone", "higher",
)  # fmt: skip


def grouped(rows: Sequence[Row]) -> list[Row]:
    """Rows of one verdict together, by name."""
    return sorted(rows, key=lambda row: (_ORDER.index(row.verdict), row.case.name))


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column of a table."""

    title: str
    meaning: str
    """One sentence."""
    cell: Callable[[Row], str]


def columns(setup: Setup, *, of_experts: bool = False) -> list[Column]:
    """The columns of a bench of routers, or of numbers of experts."""
    first = [Column(title="router", meaning="", cell=lambda row: row.case.label)]
    compared = [
        Column(
            title=f"less {REFERENCE}",
            meaning="Mean difference of the held-out loss, seed by seed, with its 95 % interval.",
            cell=lambda row: "" if row.difference is None else signed(row.difference),
        ),
        Column(
            title="which is",
            meaning="'lower' or 'higher' if the interval of the difference leaves out 0.",
            cell=lambda row: row.verdict,
        ),
    ]
    if of_experts:
        first = [
            Column(title="experts", meaning="", cell=lambda row: str(row.case.num_experts)),
            Column(
                title="parameters",
                meaning="All of the model, in thousands.",
                cell=lambda row: f"{row.mean(lambda it: it.parameters) / 1e3:,.0f} k",
            ),
        ]
        compared[0] = Column(
            title="less the first", meaning=compared[0].meaning, cell=compared[0].cell
        )
    return [*first, _loss_column(), *compared, *_routing_columns(setup)]


def _loss_column() -> Column:
    return Column(
        title="held-out loss",
        meaning="Nats per token, mean over seeds with its 95 % t interval.",
        cell=lambda row: with_error(row.loss),
    )


def _routing_columns(setup: Setup) -> list[Column]:
    def number(title: str, meaning: str, value: Callable[[RunRecord], float], form: str) -> Column:
        return Column(title=title, meaning=meaning, cell=lambda row: format(row.mean(value), form))

    def experts(row: Row) -> str:
        mark = "" if row.does_same_work(setup.top_k) else " *"
        return f"{row.mean(lambda it: it.experts_per_token):.2f}{mark}"

    return [
        Column(
            title="experts/token",
            meaning=f"As routed; * is more than 5 % away from {setup.top_k}: not the same work.",
            cell=experts,
        ),
        number(
            "max/mean load",
            "Busiest expert over the mean, of a step and layer; 1 is even.",
            lambda it: it.imbalance,
            ".2f",
        ),
        number(
            f"drops at {CAPACITY:g}",
            f"Share of assignments that a capacity factor of {CAPACITY:g} would drop.",
            lambda it: it.over_capacity,
            ".1%",
        ),
        *(
            [number("drop rate", "Share dropped in training.", lambda it: it.drop_rate, ".1%")]
            if setup.capacity_factor is not None
            else []
        ),
        number(
            "entropy",
            "Of the router's distribution, over its maximum.",
            lambda it: it.uncertainty,
            ".2f",
        ),
        number(
            "causal gap",
            "Held-out loss as used, less that of the same text routed as in training.",
            lambda it: it.causal_gap,
            "+.3f",
        ),
        number(
            "rerouted",
            "Share of tokens whose experts differ between the two.",
            lambda it: it.rerouted,
            ".1%",
        ),
        number(
            "domain MI",
            "I(expert; domain) over the smaller entropy, on held-out code and prose.",
            lambda it: it.specialization,
            ".3f",
        ),
        Column(
            title="step, ms",
            meaning="Median step, range over turns; it is of this machine alone.",
            cell=_step_time,
        ),
    ]


def with_error(interval: Interval) -> str:
    """As "4.374 +- 0.012"; the mean alone where there is no interval."""
    if math.isnan(interval.half_width):
        return f"{interval.mean:.4f}"
    return f"{interval.mean:.4f} +- {interval.half_width:.4f}"


def signed(interval: Interval) -> str:
    """As `with_error`, with the sign of the mean."""
    return f"+{with_error(interval)}" if interval.mean >= 0 else with_error(interval)


def _step_time(row: Row) -> str:
    if not row.step_times:
        return "-"
    return f"{row.step_time:.1f} ({min(row.step_times):.1f} to {max(row.step_times):.1f})"
