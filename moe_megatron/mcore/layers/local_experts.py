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

from moe_megatron.mcore.cpu import fast
from moe_megatron.mcore.cpu.fast.swiglu_experts import SwiGluExperts


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
        weights = [expert.linear_fc1.weight for expert in self.local_experts]
        weights += [expert.linear_fc2.weight for expert in self.local_experts]
        output = SwiGluExperts.apply(
            permuted_local_hidden_states, permuted_probs, tokens_per_expert.tolist(), *weights
        )
        return output, None

    def _is_plain(self, hidden_states: torch.Tensor) -> bool:
        """Whether the fast path can compute these experts; it cannot run adapters or hooks."""
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
        and type(expert.linear_fc1) is ColumnParallelLinear
        and type(expert.linear_fc2) is RowParallelLinear
        and not any(
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            for module in expert.modules()
        )
    )
