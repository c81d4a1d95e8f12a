"""`TokenPaths`: which experts each token of one text goes to, layer by layer, and how strongly.

It is made of the routers' decisions, and knows neither models nor torch. T is the number of tokens,
L of MoE layers; a router may give tokens different numbers of experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from moe_megatron.analytics.routers import Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPaths:
    """The ways of the tokens of one text through the layers.

    Attributes:
        tokens: text of each token, length T.
        layers: global 1-based numbers of the MoE layers, length L.
        experts: [L][T], the experts of each token, best first.
        weights: [L][T], with what weight each of them counts; 0 where the expert was full.
    """

    tokens: tuple[str, ...]
    layers: tuple[int, ...]
    experts: tuple[tuple[tuple[int, ...], ...], ...]
    weights: tuple[tuple[tuple[float, ...], ...], ...]

    @classmethod
    def of(cls, tokens: Sequence[str], decisions: Sequence[Decision]) -> Self:
        """The paths of a text without padding.

        Args:
            tokens: Text of each token.
            decisions: Of each layer, of a batch of this text alone.
        """
        experts, weights = [], []
        for decision in decisions:
            probs_TE = decision.routed.probs_TE.float().tolist()
            chosen = [tuple(e for e in row if e >= 0) for row in decision.indices[0].tolist()]
            experts.append(tuple(chosen))
            weights.append(
                tuple(
                    tuple(probs_E[expert] for expert in row)
                    for row, probs_E in zip(chosen, probs_TE, strict=True)
                )
            )
        return cls(
            tokens=tuple(tokens),
            layers=tuple(decision.layer for decision in decisions),
            experts=tuple(experts),
            weights=tuple(weights),
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; weights have six digits."""
        return {
            "tokens": self.tokens,
            "layers": self.layers,
            "experts": self.experts,
            "weights": [
                [[float(f"{it:.6g}") for it in token] for token in layer] for layer in self.weights
            ],
        }
