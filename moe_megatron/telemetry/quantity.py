"""The definition of a quantity: one number for each MoE layer and step.

    one step, measured   sum over tokens of measure(routed) / tokens
    one step, derived    derive(sums)
    many steps           sum over steps of value * tokens / sum over steps of tokens

A measured quantity is a function of what a router just did with some tokens. Its values are summed
on the device over the tokens, micro-batches and ranks of a step. A derived quantity is a function
of the sums of the whole step. There is no other reduction: what is not a mean over tokens, such as
a maximum over experts or a ratio, is derived. `catalog` lists the quantities. Nothing here imports
torch: a measure uses the methods of the tensors it gets.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from moe_megatron.errors import ConfigError
from moe_megatron.telemetry.values.json_fields import Float64Array, Int64Array
from moe_megatron.telemetry.values.per_layer import find_name_problem
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

_GAUGE = re.compile(r"moe(_[a-z0-9]+)+")
_UNITS_IN_NAMES = ("bytes", "ratio", "seconds")
_RESERVED_ENDINGS = ("_bucket", "_count", "_sum", "_total")


class RoutedTokens(Protocol):
    """What a router did with T tokens of a micro-batch; E is the number of experts.

    Properties with a shape are torch tensors on the router's device, without gradients. Each is
    computed once, on first access.
    """

    @property
    def top_k(self) -> int:
        """Target number of experts for each token."""

    @property
    def logits_TE(self) -> Any:
        """float32 [T, E]: output of the gate."""

    @property
    def log_softmax_TE(self) -> Any:
        """float32 [T, E]: logits - logsumexp(logits)."""

    @property
    def logsumexp_T(self) -> Any:
        """float32 [T]: ln sum_e exp(logits_e)."""

    @property
    def scores_TE(self) -> Any:
        """float32 [T, E]: the router's distribution over all experts; rows sum to 1."""

    @property
    def entropy_T(self) -> Any:
        """float32 [T]: -sum_e p_e ln p_e, entropy of the distribution, in nats."""

    @property
    def probs_TE(self) -> Any:
        """[T, E]: combine weights, 0 where an expert does not get the token."""

    @property
    def routing_map_TE(self) -> Any:
        """Bool [T, E]: True where an expert gets the token."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepSums:
    """What all routers did in one step, summed over the global batch.

    L is the number of MoE layers, E the number of experts in a layer.

    Attributes:
        tokens: tokens that each layer routed.
        top_k: target number of experts for each token.
        tokens_per_expert: int64 [L, E], assignments to each expert, without dropped ones.
        assigned: int64 [L], assignments that the router selected, including dropped ones.
        prob_sums: float64 [L, E], the router's distribution, summed over tokens.
        means: the measured quantities of the step by name, each float64 [L].
    """

    tokens: int
    top_k: int
    tokens_per_expert: Int64Array
    assigned: Int64Array
    prob_sums: Float64Array
    means: Mapping[str, Float64Array]

    def snapshot(
        self, step: int, layers: tuple[int, ...], quantities: Iterable["Quantity"]
    ) -> RoutingSnapshot:
        """The snapshot of the step, where dropped = assigned - sum_e tokens_per_expert.

        Args:
            step: 1-based step.
            layers: global 1-based numbers of the MoE layers.
            quantities: those that were measured and those to derive.

        Raises:
            ConfigError: a derived quantity is not one value per layer.
        """
        return RoutingSnapshot(
            step=step,
            tokens=self.tokens,
            top_k=self.top_k,
            layers=layers,
            tokens_per_expert=self.tokens_per_expert,
            assigned=self.assigned,
            dropped=self.assigned - self.tokens_per_expert.sum(axis=1),
            per_layer={quantity.name: quantity.of_step(self) for quantity in quantities},
        )


Measure = Callable[[RoutedTokens], Any]
Derive = Callable[[StepSums], Float64Array]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """One number for each MoE layer and step.

    Attributes:
        name: its key in `RoutingSnapshot.per_layer`, and its array in a history.
        help: one sentence.
        title: title of charts, a few words.
        unit: of the values; "" for a plain number.
        note: how to read a chart of it, in a sentence or two.
        measure: gives one value per token, [T].
        derive: gives one value per layer, float64 [L]. Either this or `measure`.
        gauge: its metric in Prometheus, TensorBoard, W&B and dashboards; None: in none of them.
        part_of_maximum: whether charts, tables and gauge show value / ln E, ln E being its maximum.
        ideal: a value that charts always include in their range, such as perfect balance.
        column: heading in the load tables of the console; None: not in them.

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

    def of_tokens(self, routed: RoutedTokens) -> Any:
        """`measure(routed)`: a tensor [T], one value per token, of any dtype.

        Raises:
            ConfigError: the measure returns something else.
        """
        assert self.measure is not None
        values_T, length = self.measure(routed), routed.logits_TE.shape[0]
        shape = getattr(values_T, "shape", None)
        if shape != (length,):
            found = f"a {type(values_T).__name__}" if shape is None else list(shape)
            raise ConfigError(
                f"the measure of the quantity '{self.name}' must return one value per token, a "
                f"tensor [{length}], and returned {found}."
            )
        return values_T

    def of_step(self, sums: StepSums) -> Float64Array:
        """`derive(sums)`, or the mean of what was measured: float64 [L], one value per layer.

        Raises:
            ConfigError: the quantity is derived, but not as one value per layer.
        """
        if self.derive is None:
            return sums.means[self.name]
        values, num_layers = self.derive(sums), len(sums.assigned)
        if getattr(values, "dtype", None) != "float64" or values.shape != (num_layers,):
            raise ConfigError(
                f"the quantity '{self.name}' must be derived as one value per layer, a float64 "
                f"array [{num_layers}], and is {values!r:.80}."
            )
        return values

    @property
    def shown_unit(self) -> str:
        """Unit of the values that charts and the gauge show."""
        return "ratio" if self.part_of_maximum else self.unit

    @property
    def shown_help(self) -> str:
        """`help` for the values that charts and the gauge show."""
        return f"{self.help[:-1]} over its maximum ln E." if self.part_of_maximum else self.help

    def _find_problem(self) -> str | None:
        subject = f"the quantity '{self.name}'"
        if (self.measure is None) == (self.derive is None):
            found = "neither" if self.measure is None else "both"
            return (
                f"{subject} needs either measure, a function of the routed tokens, or derive, a "
                f"function of the step's sums; it has {found}"
            )
        if len(self.help) < 2 or not self.help.endswith("."):
            return f"{subject} needs a help of one sentence with a full stop, not {self.help!r}"
        if not self.title.strip():
            return f"{subject} needs a title of a few words, for charts"
        return None if self.gauge is None else self._find_gauge_problem(self.gauge)

    def _find_gauge_problem(self, gauge: str) -> str | None:
        subject = f"the gauge {gauge!r} of the quantity '{self.name}'"
        if not _GAUGE.fullmatch(gauge) or gauge.endswith(_RESERVED_ENDINGS):
            return (
                f"{subject} needs a name like moe_router_{self.name}: lower-case letters, digits "
                "and single underscores after moe_, and none of the endings "
                f"{', '.join(_RESERVED_ENDINGS)}"
            )
        for unit in _UNITS_IN_NAMES:
            if (self.shown_unit == unit) != gauge.endswith(f"_{unit}"):
                return (
                    f"{subject} shows values in the unit {self.shown_unit!r}; its name must end in "
                    f"_{unit} if and only if the unit is {unit}"
                )
        return None
