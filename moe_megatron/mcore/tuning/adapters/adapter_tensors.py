"""The tensors of adapters: how they are split, stored, drawn and reduced, under every layout.

They stand in a tree beside the decoder whose names are those of whole models. In checkpoints each
has the name of its matrix with `lora_A`, `lora_B` or `lora_magnitude` in place of `weight`, and
belongs to one layer and expert alone: ranks may differ, and not all matrices have adapters.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from torch import Tensor, nn

from moe_megatron.config.adapter import A
from moe_megatron.mcore.layers.drawing import hashed
from moe_megatron.mcore.tuning.places import ADAPTERS


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where one tensor of an adapter is, and which part of it each rank holds."""

    name: str
    """In checkpoints and in the whole model."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    axis: int | None
    """Along which it is split; None: it is the same on all ranks of the group."""
    halves: bool
    """Whether each rank holds a part of the first half and a part of the second one."""
    group: Any
    """The ranks over which it is split, or that have the same."""
    of_expert: bool
    """Whether it is one expert's, and not held by ranks with other experts."""

    def part(self, whole: Tensor) -> Tensor:
        """This rank's part of a whole tensor."""
        if self.axis is None:
            return whole
        number, parts = self.group.rank(), self.group.size()
        blocks = whole.chunk(2, self.axis) if self.halves else (whole,)
        return torch.cat([it.chunk(parts, self.axis)[number] for it in blocks], self.axis)

    def local_shape(self) -> tuple[int, ...]:
        """Shape of this rank's part."""
        parts = self.group.size()
        return tuple(n // parts if i == self.axis else n for i, n in enumerate(self.shape))

    def sharded(self, part: Tensor) -> Any:
        """This rank's part as Megatron's checkpoints take it."""
        data = (
            parallel_state.get_expert_data_parallel_group()
            if self.of_expert
            else parallel_state.get_data_parallel_group(with_context_parallel=True)
        )
        number, parts = self.group.rank(), self.group.size()
        copy = 0 if self.axis is not None else number
        offsets = [] if self.axis is None else [(self.axis, number, parts)]
        tensor = ShardedTensor.from_rank_offsets(
            self.name, part, *offsets, replica_id=(0, copy, data.rank())
        )
        return apply_swiglu_sharded_factory(tensor, ()) if self.halves else tensor


class AdapterTensors(nn.Module):
    """Tensors of adapters, by their last names; called, it gives them.

    It is called in each pass, so that a distributed optimizer can bring them before they are used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layouts: dict[str, Layout] = {}
        self._seed = 0

    def add(self, layout: Layout, *, like: Tensor, seed: int, **attributes: Any) -> None:
        """Add a tensor that is drawn for A, and zero.

        Args:
            layout: Of the tensor.
            like: A tensor of the type and device to use.
            seed: Of the run.
            attributes: What the tensor says to Megatron.
        """
        self._seed = seed
        name = layout.name.rpartition(".")[2]
        parameter = nn.Parameter(_first(layout, seed).to(like.device, like.dtype))
        set_tensor_model_parallel_attributes(
            parameter, layout.axis is not None, layout.axis or 0, 1
        )
        for key, value in attributes.items():
            setattr(parameter, key, value)
        self.layouts[name] = layout
        self.register_parameter(name, parameter)

    @torch.no_grad()
    def begin_anew(self) -> None:
        """Make the tensors what they were when they were added."""
        for name, layout in self.layouts.items():
            self.get_parameter(name).copy_(_first(layout, self._seed))

    def forward(self) -> Mapping[str, Tensor]:
        """The tensors by their last names, this rank's part of each."""
        return dict(self.named_parameters(recurse=False))

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """The tensors as Megatron's checkpoints take them."""
        named = self.named_parameters(recurse=False)
        return {f"{prefix}{name}": self.layouts[name].sharded(it) for name, it in named}


class Branch(nn.Module):
    """A node of the tree."""

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """What is below, as Megatron's checkpoints take it."""
        found: dict[str, Any] = {}
        for name, child in self.named_children():
            found |= child.sharded_state_dict(f"{prefix}{name}.")  # type: ignore[operator]
        return found


def tensors_at(chunk: nn.Module, place: str) -> AdapterTensors:
    """The tensors at a place of a chunk's tree, which grows as needed.

    Args:
        chunk: A model chunk, not wrapped.
        place: Such as `decoder.layers.0.self_attention.linear_qkv`.
    """
    node: nn.Module = chunk
    *branches, leaf = [ADAPTERS, *place.split(".")]
    for name in branches:
        if not hasattr(node, name):
            node.add_module(name, Branch())
        node = node.get_submodule(name)
    if not hasattr(node, leaf):
        node.add_module(leaf, AdapterTensors())
    found = node.get_submodule(leaf)
    assert isinstance(found, AdapterTensors)
    return found


def adapter_tensors(chunks: list[Any]) -> Iterator[AdapterTensors]:
    """All that there are in the chunks of this rank."""
    for chunk in chunks:
        yield from (it for it in chunk.modules() if isinstance(it, AdapterTensors))


def _first(layout: Layout, seed: int) -> Tensor:
    """What this rank's part of a tensor is before the first step."""
    if layout.name.rpartition(".")[2] == A:
        return layout.part(_drawn(layout.name, layout.shape, seed))
    return torch.zeros(layout.local_shape(), dtype=torch.float32)


def _drawn(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The first A, U(-1, 1) / sqrt(inputs), which depends on seed and name alone."""
    bound = 1 / math.sqrt(shape[-1])
    generator = torch.Generator().manual_seed(hashed(seed, name, bits=63))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
