"""Routers of a model of transformers that know some of its experts alone.

A router without the rows of an expert computes what one does of which that expert's logit is minus
infinity: softmax, sigmoid and their best k are those of the others. So each layer may keep a number
of its own. Rows are taken from the module beside the experts that has one for each of them.
"""

from typing import Any

from torch import Tensor, nn

from moe_megatron.errors import CheckpointError
from moe_megatron.inference.kept_experts import Kept
from moe_megatron.inference.transformers_experts import experts_of

_NUMBERS = ("num_experts", "num_local_experts", "n_routed_experts", "out_features")
"""How modules of transformers call the number of their experts."""


def keep_rows(model: nn.Module, kept: Kept) -> None:
    """Leave the rows of kept experts in every router.

    Args:
        model: A model whose experts have places.
        kept: The experts of each layer.

    Raises:
        CheckpointError: It is not known which rows of a router are those of experts.
    """
    for name, module in experts_of(model).items():
        experts: Any = module
        block = model.get_submodule(name.rpartition(".")[0])
        router = router_of(block, experts, type(model))
        rows = list(kept[experts.place.layer])
        whole = experts.num_experts
        for part in router.modules():
            for key, tensor in [*part.named_parameters(recurse=False)]:
                new = nn.Parameter(_taken(tensor, rows, whole), requires_grad=tensor.requires_grad)
                part.register_parameter(key, new)
            for key, buffer in [*part.named_buffers(recurse=False)]:
                part.register_buffer(key, _taken(buffer, rows, whole))
        for part in (block, router, experts):
            for number in _NUMBERS:
                if getattr(part, number, None) == whole:
                    setattr(part, number, len(rows))


def router_of(block: nn.Module, experts: nn.Module, model: type) -> nn.Module:
    """The module beside the experts with a matrix of a row for each.

    Raises:
        CheckpointError: There is not exactly one in this block of the model.
    """
    found = [
        it
        for it in block.children()
        if it is not experts and _is_gate(getattr(it, "weight", None), int(experts.num_experts))  # type: ignore[arg-type]
    ]
    if len(found) != 1:
        raise CheckpointError(
            f"{model.__name__} has {len(found)} modules beside its experts with a row for each of "
            "them, so that its router is not known; write a model of fewer experts with "
            "`moe-megatron convert --keep-experts`, and load that."
        )
    return found[0]


def _is_gate(weight: object, experts: int) -> bool:
    return isinstance(weight, Tensor) and weight.ndim == 2 and weight.shape[0] == experts


def _taken(tensor: Tensor, rows: list[int], whole: int) -> Tensor:
    """A tensor with a row, or else a column, for each expert: those of `rows`."""
    axes = [axis for axis in (0, tensor.ndim - 1) if tensor.ndim and tensor.shape[axis] == whole]
    if not axes:
        return tensor.detach()
    return tensor.detach().index_select(axes[0], tensor.new_tensor(rows).long())
