"""Quantiles of the scores of each expert, from histograms that add up over micro-batches and ranks.

An exact quantile needs all tokens of a global batch at one place; a histogram is a sum. Shapes:
T tokens, E experts, B bins.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Histogram:
    """Bins of equal width between two values; what lies outside counts in the outermost ones."""

    low: float | Tensor
    high: float | Tensor
    bins: int = 1024

    def counts(self, values_TE: Tensor, padding_T: Tensor | None = None) -> Tensor:
        """Number of tokens in each bin, int64 [E, B].

        Args:
            values_TE: The scores.
            padding_T: bool, True for tokens that do not count.
        """
        if padding_T is not None:
            values_TE = values_TE[~padding_T]
        num_experts = values_TE.shape[1]
        places_TE = (values_TE.detach() - self.low) / self._width
        bins_TE = places_TE.clamp(0, self.bins - 1).long()
        bins_TE = bins_TE + torch.arange(num_experts, device=bins_TE.device) * self.bins
        counts = torch.bincount(bins_TE.flatten(), minlength=num_experts * self.bins)
        return counts.view(num_experts, self.bins)

    def empty(self, num_experts: int) -> Tensor:
        """No tokens, [E, B]."""
        return torch.zeros(num_experts, self.bins)

    def quantile(self, counts_EB: Tensor, share: float) -> Tensor:
        """The value below which this share of an expert's tokens lies, [E].

        Within a bin, tokens count as evenly spread.

        Args:
            counts_EB: Tokens by bin.
            share: From 0 to 1.
        """
        sums_EB = counts_EB.double().cumsum(-1)
        wanted_E1 = (share * sums_EB[:, -1:]).contiguous()
        bins_E1 = torch.searchsorted(sums_EB, wanted_E1).clamp(max=self.bins - 1)
        inside_E1 = counts_EB.double().gather(-1, bins_E1)
        before_E1 = sums_EB.gather(-1, bins_E1) - inside_E1
        part_E1 = (wanted_E1 - before_E1) / inside_E1.clamp(min=1.0)
        return (self.low + (bins_E1 + part_E1) * self._width).squeeze(-1).float()

    @property
    def _width(self) -> float | Tensor:
        return (self.high - self.low) / self.bins
