"""Experts of the local layer spec: Megatron's, completed for the CPU.

`LocalExperts` holds the parameters of `SequentialMLP` under the same names and in the same
checkpoint layout.
"""

import dataclasses

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP

from moe_megatron.config.adapter import A, B
from moe_megatron.mcore.cpu import fast
from moe_megatron.mcore.cpu.fast.swiglu_experts import SwiGluExperts
from moe_megatron.mcore.tuning.adapters.update import LowRankUpdate


class LocalExperts(SequentialMLP):
    """`SequentialMLP` with a faster path for plain SwiGLU experts."""

    def __init__(
        self,
        num_local_experts: int,
        config: TransformerConfig,
        submodules: MLPSubmodules,
        pg_collection: ProcessGroupCollection,
        name: str | None = None,
    ) -> None:
        if config.add_bias_linear:
            submodules = dataclasses.replace(submodules, linear_fc2=_ClonedOutput)
        super().__init__(num_local_experts, config, submodules, pg_collection, name)

    def forward(
        self,
        permuted_local_hidden_states: torch.Tensor,
        tokens_per_expert: torch.Tensor,
        permuted_probs: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run every token through its expert.

        Args:
            permuted_local_hidden_states: [tokens, hidden], sorted by expert.
            tokens_per_expert: int64 [local experts].
            permuted_probs: [tokens], combine weights.

        Returns:
            Weighted outputs, [tokens, hidden], and None in place of a bias.
        """
        if not self._is_plain(permuted_local_hidden_states):
            return super().forward(  # type: ignore[no-any-return]
                permuted_local_hidden_states, tokens_per_expert, permuted_probs
            )
        layers = [expert.linear_fc1 for expert in self.local_experts]
        layers += [expert.linear_fc2 for expert in self.local_experts]
        weights = [layer.weight for layer in layers]
        scales: list[float | None] = [None] * len(layers)
        for number, update in enumerate(map(_update_of, layers)):
            if update is not None:
                tensors, scales[number] = update.current(), update.scale
                weights += [tensors[A], tensors[B]]
        output = SwiGluExperts.apply(
            permuted_local_hidden_states,
            permuted_probs,
            tokens_per_expert.tolist(),
            scales,
            *weights,
        )
        return output, None

    def _is_plain(self, hidden_states: torch.Tensor) -> bool:
        """Whether the fast path can compute these experts; of all hooks it knows adapters alone."""
        config = self.config
        return (
            hidden_states.device.type == "cpu"
            and fast.enabled("experts")
            and config.gated_linear_unit
            and config.activation_func is torch.nn.functional.silu
            and config.activation_func_clamp_value is None
            and config.glu_linear_offset == 0
            and not config.add_bias_linear
            and not config.moe_apply_probs_on_input
            and self.tp_group.size() == 1
            and all(_is_plain_expert(expert) for expert in self.local_experts)
        )


class _ClonedOutput(RowParallelLinear):
    """`RowParallelLinear` with an output that experts may modify in place to add their bias.

    Megatron's output is a view returned by its communication function, which autograd does not
    allow to be modified in place.
    """

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As in `RowParallelLinear`; [tokens, width] to [tokens, hidden]."""
        output, bias = super().forward(input_)
        return output.clone(), bias


def _is_plain_expert(expert: torch.nn.Module) -> bool:
    return (
        type(expert) is MLP
        and not any("_forward_impl" in vars(it) for it in expert.modules())  # kept in another form
        and type(expert.linear_fc1) is ColumnParallelLinear
        and type(expert.linear_fc2) is RowParallelLinear
        and all(map(_has_no_hooks, expert.modules()))
    )


def _has_no_hooks(module: torch.nn.Module) -> bool:
    """Whether nothing hears of a module, but for an adapter that only adds s (x A^T) B^T."""
    update = _update_of(module)
    return (
        len(module._forward_hooks) == (update is not None and update.is_plain)
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
    )


def _update_of(layer: torch.nn.Module) -> LowRankUpdate | None:
    hooks = layer._forward_hooks.values()
    return next((it for it in hooks if isinstance(it, LowRankUpdate)), None)
