"""What a quantity is: one number for each MoE layer and step, said once for all who show it.

    step, measured   sum of measure(routed) over all tokens / tokens
    step, derived    derive(sums)
    many steps       sum of value * tokens over the steps / sum of tokens

A measured quantity is a function of what a router just did with some tokens. Its values are added
up over the tokens, micro-batches and ranks of a step where they arise, on the device. A derived one
is a function of what the whole step added up to. `catalog` has the list of quantities. Nothing here
knows torch: a measure uses the methods of the tensors it gets.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from moe_megatron.errors import ConfigError
from moe_megatron.telemetry.values.json_fields import Float64Array, Int64Array
from moe_megatron.telemetry.values.per_layer import find_name_problem

_GAUGE = re.compile(r"moe(_[a-z0-9]+)+")
_UNITS_IN_NAMES = ("bytes", "ratio", "seconds")
_ENDINGS_OF_OTHERS = ("_bucket", "_count", "_sum", "_total")


class RoutedTokens(Protocol):
    """What a router did with T tokens of a micro-batch; E is the number of experts.

    What has a shape is a tensor of torch on the router's device, without gradients. Each is
    computed when it is first asked for, and once.
    """

    @property
    def top_k(self) -> int:
        """Experts that the router aims at for a token."""

    @property
    def logits_TE(self) -> Any:
        """float32 [T, E]: output of the gate."""

    @property
    def log_softmax_TE(self) -> Any:
        """float32 [T, E]: logits - logsumexp(logits)."""

    @property
    def logsumexp_T(self) -> Any:
        """float32 [T]: ln of the sum of exp(logits)."""

    @property
    def scores_TE(self) -> Any:
        """float32 [T, E]: the router's distribution over all experts; rows sum to 1."""

    @property
    def entropy_T(self) -> Any:
        """float32 [T]: entropy of the distribution, in nats."""

    @property
    def probs_TE(self) -> Any:
        """[T, E]: combine weights, 0 where an expert does not get the token."""

    @property
    def routing_map_TE(self) -> Any:
        """True where an expert gets the token, bool [T, E]."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepSums:
    """What all routers did in one step, summed over the global batch.

    L is the number of MoE layers, E of experts in a layer.

    Attributes:
        tokens: tokens that every layer routed.
        top_k: experts that the router aims at for a token.
        tokens_per_expert: int64 [L, E], assignments that reached an expert.
        assigned: int64 [L], assignments that the router asked for.
        prob_sums: float64 [L, E], the router's distribution, summed over tokens.
        means: the measured quantities of the step by name, each float64 [L].
    """

    tokens: int
    top_k: int
    tokens_per_expert: Int64Array
    assigned: Int64Array
    prob_sums: Float64Array
    means: Mapping[str, Float64Array]


Measure = Callable[[RoutedTokens], Any]
Derive = Callable[[StepSums], Float64Array]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """One number for each MoE layer and step.

    Attributes:
        name: key in `RoutingSnapshot.per_layer`, array of a history.
        help: one sentence.
        title: a few words, above charts.
        unit: of the values; "" for a plain number.
        note: how to read a chart of it, in a sentence or two.
        measure: gives one value a token, [T].
        derive: gives one value a layer, float64 [L]. Either this or `measure`.
        gauge: its metric in Prometheus, TensorBoard, W&B and dashboards; None: in none of them.
        part_of_maximum: charts, tables and gauge show the value over ln E, its maximum.
        ideal: a value that charts include, such as perfect balance.
        column: heading in the load tables of the console; None leaves it out of them.

    Raises:
        ConfigError: a field is malformed; the message names the quantity and the field.
    """

    name: str
    help: str
    title: str
    unit: str = ""
    note: str = ""
    measure: Measure | None = None
    derive: Derive | None = None
    gauge: str | None = None
    part_of_maximum: bool = False
    ideal: float | None = None
    column: str | None = None

    def __post_init__(self) -> None:
        if problem := find_name_problem(self.name) or self._find_problem():
            raise ConfigError(f"{problem}.")

    @property
    def shown_unit(self) -> str:
        """Unit of what charts and the gauge show."""
        return "ratio" if self.part_of_maximum else self.unit

    @property
    def shown_help(self) -> str:
        """`help`, of what charts and the gauge show."""
        return f"{self.help[:-1]} over its maximum ln E." if self.part_of_maximum else self.help

    def _find_problem(self) -> str | None:
        me = f"the quantity '{self.name}'"
        if (self.measure is None) == (self.derive is None):
            found = "neither" if self.measure is None else "both"
            return (
                f"{me} needs either measure, a function of the routed tokens, or derive, a "
                f"function of the step's sums; it has {found}"
            )
        if len(self.help) < 2 or not self.help.endswith("."):
            return f"{me} needs a help of one sentence with a full stop, not {self.help!r}"
        if not self.title.strip():
            return f"{me} needs a title of a few words, for charts"
        return None if self.gauge is None else self._find_gauge_problem(self.gauge)

    def _find_gauge_problem(self, gauge: str) -> str | None:
        me = f"the gauge {gauge!r} of the quantity '{self.name}'"
        if not _GAUGE.fullmatch(gauge) or gauge.endswith(_ENDINGS_OF_OTHERS):
            return (
                f"{me} needs a name like moe_router_{self.name}: small letters, digits and single "
                f"underscores after moe_, and none of the endings {', '.join(_ENDINGS_OF_OTHERS)}"
            )
        for unit in _UNITS_IN_NAMES:
            if (self.shown_unit == unit) != gauge.endswith(f"_{unit}"):
                return (
                    f"{me} shows a value of the unit {self.shown_unit!r}; a name ends in _{unit} "
                    f"exactly when the unit is {unit}"
                )
        return None
