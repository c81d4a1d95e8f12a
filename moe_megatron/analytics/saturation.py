"""Router saturation: how far routers decide at one checkpoint as they do at a later one.

OLMoE (Muennighoff et al. 2024, arXiv 2409.02060): the share of the experts chosen at the later
checkpoint that the earlier one chose for the same token, mean over tokens. A share means little by
itself, since two routers that use a few experts much agree by that alone, and routers that look at
nothing but the token's id agree from the first steps on. Beside it stand the shares that the choice
for another token would have, of any id or of the same one. It knows decisions, not models.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_megatron.analytics.bootstrap import basic_interval
from moe_megatron.analytics.decisions import BatchAnalysis
from moe_megatron.config.arguments import whole
from moe_megatron.errors import DataError

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Saturation:
    """Agreement of two checkpoints, of each layer.

    Attributes:
        layers: global 1-based numbers of the MoE layers, length L.
        share: [L], sum_t |A_t and B_t| / sum_t |B_t|, A and B the experts of token t at the earlier
            and the later checkpoint.
        interval: [2, L], 95 % interval over the rows of the batch; basic bootstrap.
        chance: [L], the share with A of another token, any.
        by_token: [L], the share with A of another token of the same id, among the tokens whose id
            occurs more than once; NaN if there is none.
    """

    layers: tuple[int, ...]
    share: Float64Array
    interval: Float64Array
    chance: Float64Array
    by_token: Float64Array


def router_saturation(
    earlier: BatchAnalysis, later: BatchAnalysis, *, resamples: int = 200, seed: int = 0
) -> Saturation:
    """Compares the decisions of two checkpoints of a model about the same tokens.

    Args:
        earlier: Decisions of the earlier checkpoint.
        later: Of the later one, which is the measure.
        resamples: How often rows are drawn again for the interval.
        seed: Of these draws.

    Raises:
        DataError: The tokens, layers or experts differ.
        ConfigError: A number is none.
    """
    same = (
        np.array_equal(earlier.input_ids, later.input_ids)
        and np.array_equal(earlier.valid, later.valid)
        and earlier.layers == later.layers
        and earlier.num_experts == later.num_experts
    )
    if not same:
        raise DataError(
            "saturation compares decisions of two checkpoints about the same tokens, and these "
            "have other tokens, layers or experts; analyze one batch with both models."
        )
    resamples = whole("resamples", resamples, least=20)
    rows = np.nonzero(later.valid)[0]
    ids = later.input_ids[later.valid]
    groups = np.unique(ids, return_inverse=True)[1]
    chosen = [(earlier.routing_map(layer), later.routing_map(layer)) for layer in later.layers]

    def by_row(experts: Int64Array) -> Float64Array:
        return np.bincount(rows, weights=experts, minlength=len(later.input_ids))

    agreed = np.stack([by_row((first & second).sum(axis=1)) for first, second in chosen])
    wanted = np.stack([by_row(second.sum(axis=1)) for _, second in chosen])  # [L, rows]
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(
        agreed.shape[1], np.full(agreed.shape[1], 1 / agreed.shape[1]), size=resamples
    )
    share = agreed.sum(axis=1) / wanted.sum(axis=1)
    return Saturation(
        layers=later.layers,
        share=share,
        interval=basic_interval(share, (weights @ agreed.T) / (weights @ wanted.T)),
        chance=np.array([_with_others(*both, np.zeros_like(groups)) for both in chosen]),
        by_token=np.array([_with_others(*both, groups) for both in chosen]),
    )


def _with_others(first: BoolArray, second: BoolArray, groups: Int64Array) -> float:
    """The share of experts that the first choice of another token of the group has.

    Of a group of n tokens: sum over pairs s, t of |A_s and B_t|, without s = t, over n - 1.
    """
    sizes = np.bincount(groups)
    firsts, seconds = (_sums(chosen, groups) for chosen in (first, second))  # [groups, E]
    own = np.bincount(groups, weights=(first & second).sum(axis=1))
    several = sizes > 1
    if not several.any():
        return float("nan")
    pairs = ((firsts * seconds).sum(axis=1) - own)[several] / (sizes[several] - 1)
    return float(pairs.sum() / seconds[several].sum())


def _sums(chosen: BoolArray, groups: Int64Array) -> Float64Array:
    sums = np.zeros((int(groups.max()) + 1, chosen.shape[1]))
    np.add.at(sums, groups, chosen)
    return sums
