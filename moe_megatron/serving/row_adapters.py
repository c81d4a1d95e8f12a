"""Adapters of low rank that each request chooses: rows of a step are adapted by whose they are.

All tokens of a step are rows of one matrix. The base is computed of all of them at once; of each
adapter, what it changes is added to the rows of the requests that asked for it. Experts, whose
matrices are in one parameter, are computed one by one in a step that has adapters of them.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

from moe_megatron.adapters.base_hash import hash_of_folder
from moe_megatron.adapters.hf_layouts import layouts_of_folder
from moe_megatron.adapters.layer_update import LayerUpdate, change
from moe_megatron.adapters.low_rank import LowRank
from moe_megatron.adapters.peft_folder import read_folder
from moe_megatron.adapters.split import AdaptedTensor, split
from moe_megatron.errors import ConfigError
from moe_megatron.inference.transformers_experts import experts_of

_WEIGHT = ".weight"
_IMPLEMENTATION = "moe_megatron_row_adapters"
_IN_A_LAYER = re.compile(r"\.layers\.\d+\.")
_SECOND = "down_proj"

Rows = Mapping[str, Tensor]
"""The rows of a step, by the adapter of their requests."""


class RowAdapters:
    """The adapters of one model of transformers, by name.

    Args:
        model: The base.
        path: Its folder.
        partial: Whether only some of its experts are in memory.
    """

    def __init__(self, model: nn.Module, path: Path, *, partial: bool = False) -> None:
        self._model, self._path, self._partial = model, path, partial
        self._rows: Rows = {}
        self._updates: dict[str, dict[str, LayerUpdate]] = defaultdict(dict)
        self._experts: dict[str, _ExpertUpdates] = {}

    def add(self, name: str, folder: Path) -> None:
        """Add the adapter in a folder of PEFT's format.

        Raises:
            CheckpointError: It belongs to another model, or is damaged.
            ConfigError: It changes what is not adapted here.
            MappingError: It is more than low-rank adapters.
        """
        found = read_folder(folder)
        if found.base is not None:
            found.check_base(hash_of_folder(self._path))
        layouts = layouts_of_folder(self._path)
        for tensor in split(found.fitted(layouts.both), layouts.fused):
            if tensor.experts is None:
                self._add_to_layer(name, tensor)
            else:
                self._add_to_experts(name, tensor)

    def step(self, step: Sequence[tuple[str | None, int]]) -> None:
        """Tell the adapter and the number of rows of each request in the next step."""
        rows: dict[str, list[int]] = defaultdict(list)
        at = 0
        for name, tokens in step:
            if name is not None:
                rows[name].extend(range(at, at + tokens))
            at += tokens
        self._rows = {name: torch.tensor(own) for name, own in rows.items()}

    def _add_to_layer(self, name: str, tensor: AdaptedTensor) -> None:
        module = tensor.name.removesuffix(_WEIGHT)
        layer = self._model.get_submodule(module) if tensor.name.endswith(_WEIGHT) else None
        if not isinstance(layer, nn.Linear) or not _IN_A_LAYER.search(module):
            raise ConfigError(
                f"the adapter {name!r} changes {tensor.name}, which is not adapted while serving; "
                "merge it (moe-megatron adapter merge) and serve the result."
            )
        if module not in self._updates:
            layer.register_forward_hook(self._hook(module))
        self._updates[module][name] = LayerUpdate.of(layer, tensor.matrices[0])

    def _add_to_experts(self, name: str, tensor: AdaptedTensor) -> None:
        if self._partial:
            raise ConfigError(
                f"the adapter {name!r} changes experts, and with an expert cache they are not in "
                "memory; leave --cache-gb out, or merge it (moe-megatron adapter merge)."
            )
        module, _, parameter = tensor.name.rpartition(".")
        experts: Any = experts_of(self._model)[module]
        if module not in self._experts:
            self._experts[module] = experts.row_adapters = _ExpertUpdates(self)
            self._model.set_experts_implementation(_IMPLEMENTATION)  # type: ignore[operator]
        second = parameter == _SECOND
        for expert, low_rank in tensor.matrices.items():
            self._experts[module].of[second, expert][name] = low_rank

    def _hook(self, module: str) -> Any:
        def adapted(layer: nn.Linear, given: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            chosen = [
                (self._updates[module][name], rows)
                for name, rows in self._rows.items()
                if name in self._updates[module]
            ]
            if not chosen:
                return None
            inputs_TH = given[0].reshape(-1, layer.in_features)
            flat = output.reshape(-1, layer.out_features).clone()
            for update, rows in chosen:
                flat[rows] = update.apply(layer, inputs_TH[rows], flat[rows])
            return flat.view_as(output)

        return adapted


class _ExpertUpdates:
    """What adapters do to the experts of one layer."""

    def __init__(self, owner: RowAdapters) -> None:
        self._owner = owner
        self.of: dict[tuple[bool, int], dict[str, LowRank]] = defaultdict(dict)
        """By whether it is the second matrix, and the expert."""

    def needed(self) -> bool:
        """Whether a request of this step has an adapter."""
        return bool(self._owner._rows)

    def apply(self, second: bool, expert: int, token: Tensor, inputs: Tensor, out: Tensor) -> None:
        """Add to the output of an expert, in place, what adapters change for these tokens."""
        for name, low_rank in self.of.get((second, expert), {}).items():
            rows = self._owner._rows.get(name)
            if rows is not None:
                mine = torch.isin(token, rows)
                out[mine] += change(low_rank, inputs[mine])


def _forward(module: Any, hidden: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """The sum of each token's experts [T, H], with the adapters of the token's request."""
    updates: _ExpertUpdates | None = getattr(module, "row_adapters", None)
    if updates is None or not updates.needed():
        plain: Tensor = grouped_mm_experts_forward(module, hidden, experts_TK, weights_TK)
        return plain
    first = module.gate_up_proj if module.has_gate else module.up_proj
    total = torch.zeros_like(hidden)
    for expert in torch.unique(experts_TK).tolist():
        token, choice = torch.where(experts_TK == expert)
        inputs = hidden[token]
        inner = linear(inputs, first[expert])
        updates.apply(False, expert, token, inputs, inner)
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
        output = linear(inner, module.down_proj[expert])
        updates.apply(True, expert, token, inner, output)
        total.index_add_(0, token, (output * weights_TK[token, choice, None]).to(total.dtype))
    return total


ALL_EXPERTS_FUNCTIONS.register(_IMPLEMENTATION, _forward)
