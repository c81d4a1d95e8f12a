"""Every routing decision of one batch, and statistics of them.

L is the number of MoE layers, E the number of experts in a layer, k the number of experts that a
token visits. A decision counts as the router made it, even if a full expert then dropped the token.
It does not know models or torch tensors: the arrays are numpy's. Figures are drawn by `drawing`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from moe_megatron.analytics.layer_rows import row_of
from moe_megatron.analytics.pair_lift import pair_lift
from moe_megatron.drawing import Picture, finished
from moe_megatron.drawing.pairs import plot_coactivation, plot_flow
from moe_megatron.errors import ConfigError

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchAnalysis:
    """What the routers decided for each token of a batch.

    Attributes:
        input_ids: int64 [batch, seq].
        layers: global 1-based numbers of the MoE layers.
        indices: int64 [L, batch, seq, k], chosen experts, best first; -1 for padding,
            and for slots left free by a router that varies the number of experts per token.
        scores: float32 [L, batch, seq, E], router distribution; 0 for padding.
        attention_maps: for each transformer layer, float32 [batch, heads, seq, seq], how much each
            query attends to each key; None unless requested.
    """

    input_ids: Int64Array
    layers: tuple[int, ...]
    indices: Int64Array
    scores: Float32Array
    attention_maps: tuple[Float32Array, ...] | None = None

    @property
    def num_experts(self) -> int:
        """E."""
        return int(self.scores.shape[-1])

    @property
    def valid(self) -> BoolArray:
        """True for tokens, False for padding. [batch, seq]"""
        # A router that varies the number of experts may give a token none.
        chosen = (self.indices >= 0).any(axis=(0, -1))
        mask: BoolArray = chosen | (self.scores[0].sum(axis=-1) > 0)
        return mask

    @property
    def tokens_per_expert(self) -> Int64Array:
        """Number of tokens that chose each expert. [L, E]"""
        return np.stack([self.routing_map(layer).sum(axis=0) for layer in self.layers])

    @property
    def token_entropy(self) -> Float32Array:
        """H_t = -sum_e p_te ln p_te, router entropy in nats; 0 for padding. [L, batch, seq]"""
        logs = np.log(np.where(self.scores > 0, self.scores, 1.0))
        result: Float32Array = -(self.scores * logs).sum(axis=-1)
        return result

    def routing_map(self, layer: int) -> BoolArray:
        """True where a token chose an expert; tokens in order, without padding. [tokens, E]

        Raises:
            ConfigError: the layer has no router.
        """
        chosen = self.indices[row_of(layer, self.layers)][self.valid]
        dense = np.zeros((len(chosen), self.num_experts), dtype=np.bool_)
        rows, slots = np.nonzero(chosen >= 0)
        dense[rows, chosen[rows, slots]] = True
        return dense

    def coactivation(self, layer: int) -> Int64Array:
        """C = M^T M, M the routing map: number of tokens that chose both experts. [E, E]

        The diagonal is the number of tokens of each expert.

        Raises:
            ConfigError: the layer has no router.
        """
        return _pairs(self.routing_map(layer), self.routing_map(layer))

    def flow(self, layer: int, to_layer: int | None = None) -> Int64Array:
        """F = M^T N, M and N the routing maps of two layers. [E, E]

        F_ij is the number of tokens that chose expert i in one layer and j in the other. Each token
        adds 1 to k x k entries.

        Args:
            layer: the layer of i.
            to_layer: the layer of j; None: the next MoE layer.

        Raises:
            ConfigError: a layer has no router, or there is no next one.
        """
        if to_layer is None:
            row = row_of(layer, self.layers) + 1
            if row == len(self.layers):
                raise ConfigError(
                    f"layer {layer} is the last with a router; give to_layer, or an earlier layer"
                )
            to_layer = self.layers[row]
        return _pairs(self.routing_map(layer), self.routing_map(to_layer))

    def plot_coactivation(
        self, layer: int, save_to: str | Path | None = None, *, columns: Literal[1, 2] = 1
    ) -> Picture:
        """Draws which experts of a layer share tokens more or less often than their loads explain.

        A pair counts only if it is three standard deviations away, as if tokens were independent.

        Args:
            layer: global layer number.
            save_to: file to write, a .png, .svg or .pdf; None writes none.
            columns: of a page that the figure spans, 1 or 2.

        Raises:
            ConfigError: the layer has no router, or each of its tokens visits one expert.
            DataError: the file cannot be written.
        """
        return finished(plot_coactivation(self.coactivation_lift(layer), layer, columns), save_to)

    def coactivation_lift(self, layer: int) -> npt.NDArray[np.float64]:
        """`coactivation` over what the experts' loads make of it; 1 if not surely different. [E, E]

        NaN for an expert with itself, and for one without tokens; see `pair_lift`.

        Raises:
            ConfigError: the layer has no router, or each of its tokens visits one expert.
        """
        joint = self.coactivation(layer)
        if joint.sum() == np.trace(joint):
            raise ConfigError(
                "no token visits two experts, so none belong together; give a model with "
                "experts_per_token of 2 or more."
            )
        return pair_lift(joint, with_itself=False)

    def plot_flow(
        self,
        layers: Sequence[int] | None = None,
        save_to: str | Path | None = None,
        *,
        columns: Literal[1, 2] = 2,
    ) -> Picture:
        """Draws the tokens as bands from the experts of one layer to those of the next.

        Args:
            layers: two or more global layer numbers; None: all, of more than six the first.
            save_to: file to write, a .png, .svg or .pdf; None writes none.
            columns: of a page that the figure spans, 1 or 2.

        Raises:
            ConfigError: a layer has no router, or there are fewer than two.
            DataError: the file cannot be written.
        """
        chosen = self.layers[:6] if layers is None else tuple(layers)
        if len(chosen) < 2:
            raise ConfigError("a flow needs two layers or more; give layers, such as [1, 2].")
        flows = [self.flow(one, other) for one, other in pairwise(chosen)]
        lifts = [pair_lift(flow, with_itself=True) for flow in flows]
        return finished(plot_flow(flows, lifts, chosen, columns), save_to)


def _pairs(first: BoolArray, second: BoolArray) -> Int64Array:
    # In float64 this is one fast matrix product, exact below 2^53 tokens.
    return (first.T.astype(np.float64) @ second.astype(np.float64)).astype(np.int64)
