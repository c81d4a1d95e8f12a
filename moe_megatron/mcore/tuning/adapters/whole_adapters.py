"""Adapters as whole tensors by their names in checkpoints: out of a model of any layout, and in."""

import json
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import apply_factories, is_main_replica
from megatron.core.utils import unwrap_model
from torch import Tensor

from moe_megatron.mcore import world
from moe_megatron.mcore.tuning.adapters.adapter_tensors import adapter_tensors


@torch.no_grad()
def collect_adapters(model: list[Any]) -> dict[str, Tensor]:
    """Collect the tensors of all adapters on every rank; all ranks must call it.

    Args:
        model: Megatron's model chunks, wrapped or not.

    Returns:
        Whole float32 tensors on the CPU, by their names in checkpoints.
    """
    shapes: dict[str, list[int]] = {}
    parts: dict[str, list[Any]] = {}
    for tensors in adapter_tensors(unwrap_model(model)):
        shapes |= {it.name: list(it.shape) for it in tensors.layouts.values()}
        state = tensors.sharded_state_dict()
        apply_factories(state)
        for part in nested_values(state):
            if is_main_replica(part.replica_id):
                parts.setdefault(part.key, []).append(part)
    everywhere: dict[str, list[int]] = {}
    for text in world.gather_texts(json.dumps(shapes)):
        everywhere |= json.loads(text)
    found = {}
    for name in sorted(everywhere):  # in the same order on all ranks
        whole = torch.zeros(everywhere[name], device=world.device())
        for part in parts.get(name, ()):
            whole[part.global_slice()] = part.data.float()
        dist.all_reduce(whole)
        found[name] = whole.cpu()
    return found


@torch.no_grad()
def load_adapters(chunks: list[Any], whole: Mapping[str, Tensor]) -> None:
    """Put whole tensors into the adapters of this rank.

    Args:
        chunks: Megatron's model chunks, not wrapped.
        whole: By names, as `collect_adapters` gives them; all that the chunks have.
    """
    for tensors in adapter_tensors(chunks):
        named = dict(tensors.named_parameters(recurse=False))
        for name, layout in tensors.layouts.items():
            named[name].copy_(layout.part(whole[layout.name]))
