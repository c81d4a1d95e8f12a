"""The loss of pairs of answers, in place of that of tokens (DPO, arXiv:2305.18290).

    d = log p(chosen) - log p(rejected),    each the sum of its learned tokens
    h = beta * (d - d_ref)
    sigmoid:  -(1 - s) log sigmoid(h) - s log sigmoid(-h)        s: label smoothing
    ipo:      (d - d_ref - 1 / (2 beta))^2                       arXiv:2310.12036

It knows a micro-batch of rows (`data/instructions/packed_row.py`), and neither model nor data.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from moe_megatron.config.preferences import PreferencesConfig

PAIRS = "pairs"
"""The key that batches of pairs have, and others have not."""

MARGIN, ACCURACY = "reward_margin", "reward_accuracy"
"""What is reported of a step besides its loss: the mean of h, and the share of pairs with h > 0."""

LossParts = tuple[Tensor, Tensor, dict[str, Tensor]]
"""A sum, what to divide it by, and both of each value for the report, as Megatron wants them."""


@dataclass(frozen=True, slots=True)
class PairScores:
    """What the model thinks of the pairs of a micro-batch."""

    numbers_P: Tensor
    """int64, number of each pair among all of the run, from 0."""
    logps_P2: Tensor
    """float32, sum over the learned tokens of the chosen and of the rejected answer."""


def pair_scores(batch: Mapping[str, Tensor], losses: Tensor) -> PairScores:
    """Add up the tokens of each answer.

    Args:
        batch: `pairs` and `loss_mask` of a micro-batch, [1, T].
        losses: -log p of each token, [1, T].
    """
    pairs_T, counted_T = batch[PAIRS].view(-1), batch["loss_mask"].view(-1).float()
    begins_T = _begins(pairs_T)
    place_T = (begins_T.cumsum(0) - 1).clamp_min(0)  # the pair of each token in this micro-batch
    side_T = (pairs_T < 0).long()
    numbers_P = pairs_T[begins_T] - 1
    sums = torch.zeros(2 * len(numbers_P), dtype=torch.float32, device=losses.device)
    logps_T = -losses.view(-1).float() * counted_T
    sums = sums.index_add(0, 2 * place_T + side_T, logps_T)
    return PairScores(numbers_P, sums.view(-1, 2))


def number_of_pairs(pairs: Tensor) -> Tensor:
    """How many pairs a micro-batch has, a scalar.

    Args:
        pairs: As in `pair_scores`.
    """
    return _begins(pairs.view(-1)).sum()


def _begins(pairs_T: Tensor) -> Tensor:
    """Where the chosen side of a pair begins."""
    before_T = torch.cat((pairs_T.new_zeros(1), pairs_T[:-1]))
    return (pairs_T > 0) & (pairs_T != before_T)


def preference_loss(
    scores: PairScores, reference_P2: Tensor, config: PreferencesConfig
) -> LossParts:
    """The loss of a micro-batch: a sum over its pairs, and their number.

    Args:
        scores: What the model thinks of the pairs.
        reference_P2: What the reference thinks of them.
        config: The form of the loss.
    """
    reference_P = (reference_P2[:, 0] - reference_P2[:, 1]).to(scores.logps_P2)
    ratio_P = scores.logps_P2[:, 0] - scores.logps_P2[:, 1] - reference_P
    h_P = config.beta * ratio_P
    if config.loss == "ipo":
        loss_P = (ratio_P - 1 / (2 * config.beta)).square()
    else:
        smoothing = config.label_smoothing
        loss_P = -(1 - smoothing) * logsigmoid(h_P) - smoothing * logsigmoid(-h_P)
    number = torch.tensor(len(loss_P), dtype=torch.int, device=loss_P.device)

    def reported(value_P: Tensor) -> Tensor:
        return torch.stack((value_P.detach().float().sum(), number.float()))

    report = {"lm loss": loss_P, MARGIN: h_P, ACCURACY: h_P > 0}
    return loss_P.sum(), number, {name: reported(value) for name, value in report.items()}
