"""The matrices of this rank that can have adapters, and how each is split over ranks.

It knows Megatron's linear layers, of the local spec and of Transformer Engine, and nothing of
adapters. A routed expert's matrix has one place, whether a layer holds it alone or grouped.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from megatron.core import parallel_state
from torch import nn

from moe_megatron.config.adapter import WITH_MATRICES
from moe_megatron.config.parameter_roles import ParameterPlace
from moe_megatron.mcore.tuning.places import placed_parameters

Split = Literal["rows", "columns"]
"""Whether ranks of tensor parallelism hold rows of a matrix (outputs) or columns (inputs)."""

_SPLITS: dict[str, Split | None] = {
    "ColumnParallelLinear": "rows",
    "RowParallelLinear": "columns",
    "TEColumnParallelLinear": "rows",
    "TELayerNormColumnParallelLinear": "rows",
    "TERowParallelLinear": "columns",
    "TEColumnParallelGroupedLinear": "rows",
    "TERowParallelGroupedLinear": "columns",
    "TELinear": None,
}
"""By the name of a layer's class, so that Transformer Engine need not be there."""

_WEIGHT = re.compile(r"^weight(\d*)$")
_GROUPED = re.compile(r"\.experts\.(linear_fc\d)\.weight(\d+)$")


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """The weight of a linear layer, or this rank's part of it."""

    place: ParameterPlace
    """Which one it is of the whole model, by its name in the local layer spec."""
    layer: Any
    """The linear layer that multiplies with it."""
    weight: nn.Parameter
    number: int | None
    """Its number in a layer of several (grouped) matrices; None for one of its own."""
    split: Split | None

    @property
    def of_expert(self) -> bool:
        """Whether it is a routed expert's."""
        return self.place.expert is not None

    @property
    def config(self) -> Any:
        """Megatron's configuration of the layer."""
        return self.layer.config

    @property
    def group(self) -> Any:
        """The ranks over which it is split."""
        if self.of_expert:
            return parallel_state.get_expert_tensor_parallel_group()
        return parallel_state.get_tensor_model_parallel_group()

    @property
    def parts(self) -> int:
        """Into how many it is split."""
        return int(self.group.size()) if self.split else 1

    @property
    def exchanges(self) -> bool:
        """Whether its layer exchanges tokens with other ranks itself.

        If not, somebody around it does: each rank gets all tokens that it needs, and sums of the
        outputs of a split over columns are made later.
        """
        explicit = getattr(self.layer, "explicit_expert_comm", False)
        elsewhere = getattr(self.layer, "parallel_mode", "") is None
        return not (self.of_expert or explicit or elsewhere)

    @property
    def outputs(self) -> int:
        """Rows of the whole matrix."""
        return int(self.weight.shape[0]) * (self.parts if self.split == "rows" else 1)

    @property
    def inputs(self) -> int:
        """Columns of the whole matrix."""
        return int(self.weight.shape[1]) * (self.parts if self.split == "columns" else 1)

    @property
    def halves(self) -> bool:
        """Whether its rows are those of two matrices, the gate's and the other's, split each."""
        return bool(
            self.config.gated_linear_unit and self.place.name.endswith(".linear_fc1.weight")
        )


def matrices(chunks: list[Any]) -> Iterator[Matrix]:
    """The matrices of attention, routed and shared experts and dense MLPs that this rank holds.

    Args:
        chunks: Megatron's model chunks, not wrapped.
    """
    owners = {
        id(parameter): (layer, name)
        for chunk in chunks
        for layer in chunk.modules()
        for name, parameter in layer.named_parameters(recurse=False)
    }
    for place, weight in placed_parameters(chunks):
        layer, name = owners[id(weight)]
        kind = next((it.__name__ for it in type(layer).__mro__ if it.__name__ in _SPLITS), None)
        match = _WEIGHT.match(name)
        if kind is None or match is None or weight.dim() != 2 or place.role not in WITH_MATRICES:
            continue
        if getattr(layer, "gather_output", False) or not getattr(layer, "input_is_parallel", True):
            continue  # exchanges more than the layers of a decoder do
        number = int(match[1]) if match[1] else None
        yield Matrix(_of_one_expert(place), layer, weight, number, _SPLITS[kind])


def _of_one_expert(place: ParameterPlace) -> ParameterPlace:
    """The place with the name that the matrix has in the local layer spec."""
    return replace(place, name=_GROUPED.sub(r".experts.local_experts.\2.\1.weight", place.name))
