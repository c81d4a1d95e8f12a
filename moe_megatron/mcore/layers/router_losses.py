"""The losses of Megatron's router where 0.19 does not compute what they are defined to be.

- **Global batch:** every data parallel rank has its share of the loss, and gradients are averaged
  over these ranks: the loss would weigh 1 / ranks of its coefficient. Here it weighs all of it.
- **Padding:** of the tokens of several ranks, or sequences, each with its own padding, Megatron
  takes a mean of means, and one average length for all sequences. Here every token that counts
  counts the same, and a sequence has its own length.
- **Instruction data:** where only answers are learned, Megatron weighs a micro-batch by all its
  tokens, so that the losses of routers would outweigh that of the model. Here a micro-batch weighs
  as much in both.
- **A router that gives tokens different numbers of experts:** the number of tokens is counted, and
  not derived from that of assignments.

What is left to Megatron: everything without padding, but for the first. It knows nothing about the
choice of experts.
"""

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from moe_megatron.mcore.layers.learned_tokens import learned_tokens_here

_GLOBAL = "global_load_balancing_loss"


class RouterLosses(TopKRouter):
    """`TopKRouter` with losses that are the same under every layout."""

    _padding_T: Tensor | None = None
    """bool, True for padding among the tokens that are being routed; None: there is none."""
    _tokens_so_far: Tensor | float = 0.0
    """Tokens that count of this step's micro-batches, of all ranks."""

    def apply_z_loss(self, logits: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """The logits [T, E], with the gradient of the z-loss attached."""
        coef, learns = self.config.moe_z_loss_coeff, self.training and torch.is_grad_enabled()
        if padding_mask is None or coef is None or not learns:
            return super().apply_z_loss(logits, padding_mask=padding_mask)  # type: ignore[no-any-return]
        valid_T = ~padding_mask
        tokens = self._over(valid_T.sum(), self.tp_cp_group).clamp_min(1)
        squares_T = torch.logsumexp(logits, dim=-1).square() * valid_T
        return self._attached(logits, coef, squares_T.sum() / tokens, "z_loss", tokens)

    def attach_and_log_load_balancing_loss(
        self,
        activation: Tensor,
        aux_loss_coeff: float,
        aux_loss: Tensor,
        aux_loss_name: str,
        reduce_group: Any,
        needs_dp_avg: bool = True,
        valid_token_count: int | Tensor | None = None,
    ) -> Tensor:  # Megatron's signature
        """The activation, with the gradient of a loss attached; the loss is logged.

        Where gradients are divided by the number of tokens in the loss of the model, a loss of the
        router counts as often as its micro-batch has such tokens.
        """
        if (learned := learned_tokens_here()) is not None:
            valid_token_count = learned / self.tp_cp_group.size()
        if aux_loss_name == _GLOBAL:
            ranks = self.tp_dp_cp_group.size() // self.tp_cp_group.size()
            aux_loss, reduce_group, needs_dp_avg = aux_loss * ranks, self.tp_cp_group, True
        return super().attach_and_log_load_balancing_loss(  # type: ignore[no-any-return]
            activation,
            aux_loss_coeff,
            aux_loss,
            aux_loss_name,
            reduce_group,
            needs_dp_avg=needs_dp_avg,
            valid_token_count=valid_token_count,
        )

    def reset_global_aux_loss_tracker(self) -> None:
        """Forget the counts of the step that has ended."""
        super().reset_global_aux_loss_tracker()
        self._tokens_so_far = 0.0

    def _apply_aux_loss(
        self, probs: Tensor, scores_for_aux_loss: Tensor, routing_map: Tensor, **masked: bool
    ) -> Tensor:  # Megatron's signature
        coef = self.get_aux_loss_coeff("aux_loss")
        if self._padding_T is None or coef == 0:
            return super()._apply_aux_loss(probs, scores_for_aux_loss, routing_map, **masked)  # type: ignore[no-any-return]
        counts_E = self._over(routing_map.sum(dim=0), self.tp_cp_group)
        tokens = self._over((~self._padding_T).sum(), self.tp_cp_group).clamp_min(1)
        loss = self._switch(scores_for_aux_loss.sum(dim=0), counts_E, tokens, tokens)
        return self._attached(probs, coef, loss, "load_balancing_loss", tokens)

    def _apply_seq_aux_loss(
        self,
        probs: Tensor,
        scores_for_aux_loss: Tensor,
        routing_map: Tensor,
        seq_length: int,
        bsz: int,
        **masked: bool,
    ) -> Tensor:  # Megatron's signature
        coef = self.get_aux_loss_coeff("seq_aux_loss")
        if self._padding_T is None or coef == 0:
            return super()._apply_seq_aux_loss(  # type: ignore[no-any-return]
                probs, scores_for_aux_loss, routing_map, seq_length, bsz, **masked
            )
        shape = (seq_length, bsz, -1)
        counts_BE = self._over(routing_map.view(shape).sum(dim=0), self.tp_cp_group)
        tokens_B = self._over((~self._padding_T).view(shape[:2]).sum(dim=0), self.tp_cp_group)
        scores_BE, each_B1 = scores_for_aux_loss.view(shape).sum(dim=0), tokens_B.clamp_min(1)
        loss_B = self._switch(scores_BE, counts_BE, each_B1, each_B1)
        return self._attached(
            probs, coef, loss_B.mean(), "seq_load_balancing_loss", tokens_B.sum().clamp_min(1)
        )

    def _apply_global_aux_loss(
        self, probs: Tensor, scores_for_aux_loss: Tensor, routing_map: Tensor, **masked: bool
    ) -> Tensor:  # Megatron's signature
        coef = self.get_aux_loss_coeff("global_aux_loss")
        if self._padding_T is None or coef == 0:
            return super()._apply_global_aux_loss(  # type: ignore[no-any-return]
                probs, scores_for_aux_loss, routing_map, **masked
            )
        everywhere, valid = self.tp_dp_cp_group, (~self._padding_T).sum()
        tokens = self._over(valid, everywhere).clamp_min(1)
        self.global_tokens_per_expert += self._over(routing_map.sum(dim=0), everywhere)
        self.ga_steps += 1
        self._tokens_so_far = self._tokens_so_far + tokens
        counts_E, so_far = self.global_tokens_per_expert, self._tokens_so_far
        loss = self._switch(scores_for_aux_loss.sum(dim=0), counts_E, so_far, tokens)
        here = self._over(valid, self.tp_cp_group).clamp_min(1)
        return self._attached(probs, coef, loss, _GLOBAL, here)

    def _switch(
        self, scores: Tensor, counts: Tensor, counted: Tensor | float, scored: Tensor
    ) -> Tensor:
        """E * sum_e f_e P_e over the last axis, of this rank's scores.

        Args:
            scores: Sums over tokens of this rank, [..., E].
            counts: Assignments of all ranks, [..., E].
            counted: Tokens that these are of, [...].
            scored: Tokens that the scores of all ranks are of, [...].
        """
        total = (scores * counts).sum(dim=-1)
        return total * (self.config.num_moe_experts / self.topk) / (counted * scored)  # type: ignore[no-any-return]

    def _attached(
        self, activation: Tensor, coef: float, loss: Tensor, name: str, tokens: Tensor
    ) -> Tensor:
        """Attach this rank's share of a loss of so many tokens of the ranks of a micro-batch."""
        group = self.tp_cp_group
        return self.attach_and_log_load_balancing_loss(
            activation, coef, coef * loss, name, group, valid_token_count=tokens / group.size()
        )

    def _share_of_tokens(self) -> Tensor | float:
        """Which part of the tokens of a micro-batch that count this rank has."""
        group = self.tp_cp_group
        if self._padding_T is None:
            return 1 / group.size()  # type: ignore[no-any-return]
        valid = (~self._padding_T).sum()
        return valid / self._over(valid, group).clamp_min(1)

    @staticmethod
    def _over(counts: Tensor, group: dist.ProcessGroup) -> Tensor:
        """Sums of whole numbers over ranks, which have no gradient."""
        counts = counts.clone()
        if group.size() > 1:
            dist.all_reduce(counts, group=group)
        return counts
