"""`RouterMonitor`: counts what the routers of a model do while it is used, in training or not.

It sums on the model's device and transfers the sums once for each `track` block. The result is a
`RoutingProfile` like that of a training run, so it can be used for placement, pruning and cost
analysis. For the decisions about single tokens see `analyzer`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_megatron.analytics.routers import Decision, RouterHooks
from moe_megatron.errors import DataError
from moe_megatron.telemetry.values.expert_load import part_of_maximum
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterStats:
    """How balanced and how certain the routers' choices were, as means over the layers.

    Here n_e counts the assignments that reached expert e of a layer, and s_e = n_e / sum_i n_i.

    Attributes:
        tokens: tokens that each layer routed.
        load_variance: var_e(s_e), variance of the experts' load shares.
        load_cv: std_e(n_e) / mean_e(n_e), coefficient of variation of the load.
        imbalance: max_e n_e / mean_e n_e; 1.0 is perfect balance.
        max_imbalance: the imbalance of the worst layer.
        drop_rate: share of all assignments that were dropped because the expert was full.
        entropy: mean_t -sum_e p_te ln p_te, entropy of the routers' distribution, in nats.
        entropy_ratio: entropy / ln E, its maximum.
        aux_loss: E * sum_e f_e P_e, Switch load balancing loss, unscaled; 1.0 is perfect balance.
        z_loss: mean_t logsumexp(logits_t)^2, unscaled.
        dead_experts: number of experts with less than 1 % of a fair share, over all layers.
    """

    tokens: int
    load_variance: float
    load_cv: float
    imbalance: float
    max_imbalance: float
    drop_rate: float
    entropy: float
    entropy_ratio: float
    aux_loss: float
    z_loss: float
    dead_experts: int

    def as_dict(self) -> dict[str, float]:
        """All values by name, for a log."""
        return asdict(self)


class RouterMonitor:
    """Counts what the routers of a model do.

        monitor = RouterMonitor(model)
        with monitor.track():
            model(input_ids)
        print(monitor.get_stats().load_variance)

    Several blocks add up. With expert parallelism it counts only the tokens of this process.

    Args:
        model: a `MoEModel`, or a transformers model with routers; see `routers`.

    Raises:
        ConfigError: no router is found in the model.
    """

    def __init__(self, model: "nn.Module") -> None:
        self._hooks = RouterHooks(model)
        self._sums: dict[int, _Sums] = {}
        self._profile = self._empty()

    @property
    def layers(self) -> tuple[int, ...]:
        """Global 1-based numbers of the layers that have a router."""
        return self._hooks.shape.layers

    @contextmanager
    def track(self) -> Iterator[None]:
        """Counts every forward pass inside the block; a block that raises counts nothing.

        Raises:
            ConfigError: the model recomputes activations, so that layers run twice.
        """
        self._sums = {}
        try:
            with self._hooks.listening(self._add):
                yield
            self._finish()
        finally:
            self._sums = {}

    def profile(self) -> RoutingProfile:
        """Everything counted so far, by layer and expert; each `track` block is one step of it.

        Raises:
            DataError: nothing was counted yet.
        """
        if not self._profile.tokens:
            raise DataError(
                "no forward pass was tracked yet; run the model inside `with monitor.track():`"
            )
        copy = self._empty()
        copy.merge(self._profile)
        return copy

    def get_stats(self) -> RouterStats:
        """Summarizes everything counted so far.

        Raises:
            DataError: nothing was counted yet.
        """
        profile = self.profile()
        entropy = profile.per_layer["entropy"]
        return RouterStats(
            tokens=profile.tokens,
            load_variance=float(profile.load_variance.mean()),
            load_cv=float(profile.load_cv.mean()),
            imbalance=float(profile.imbalance.mean()),
            max_imbalance=float(profile.imbalance.max()),
            drop_rate=float(profile.drop_rate.mean()),
            entropy=float(entropy.mean()),
            entropy_ratio=float(part_of_maximum(entropy, profile.num_experts).mean()),
            aux_loss=float(profile.per_layer["aux_loss"].mean()),
            z_loss=float(profile.per_layer["z_loss"].mean()),
            dead_experts=int(profile.dead_expert_mask().sum()),
        )

    def reset(self) -> None:
        """Forgets everything counted so far."""
        self._profile = self._empty()

    def _empty(self) -> RoutingProfile:
        shape = self._hooks.shape
        return RoutingProfile.empty(
            layers=shape.layers, num_experts=shape.num_experts, top_k=shape.top_k
        )

    def _add(self, decision: Decision) -> None:
        new = _Sums.of(decision)
        old = self._sums.get(decision.layer)
        self._sums[decision.layer] = new if old is None else old.plus(new)

    def _finish(self) -> None:
        """Adds the block to the profile."""
        layers, top_k = self.layers, self._hooks.shape.top_k
        if not self._sums:
            return
        sums = [self._sums[layer] for layer in layers if layer in self._sums]
        tokens = [int(layer.tokens) for layer in sums]
        if len(sums) < len(layers) or len(set(tokens)) > 1:
            seen = dict(zip(sorted(self._sums), tokens, strict=True))
            raise DataError(
                "a tracked block must run every layer on the same tokens, but of the layers "
                f"{layers} these ran, with so many tokens: {seen}; run the whole model"
            )
        counts = np.stack([_fetch(layer.counts).astype(np.int64) for layer in sums])
        relative_load = counts / np.maximum(counts.sum(1, keepdims=True), 1) * counts.shape[1]
        probability = np.stack([_fetch(layer.scores) for layer in sums]) / max(tokens[0], 1)
        self._profile.add(
            RoutingSnapshot(
                step=self._profile.steps + 1,
                tokens=tokens[0],
                top_k=top_k,
                layers=layers,
                tokens_per_expert=counts,
                assigned=np.array([int(layer.assigned) for layer in sums], dtype=np.int64),
                dropped=np.array([int(layer.dropped) for layer in sums], dtype=np.int64),
                per_layer={
                    "entropy": np.array([float(s.entropy) for s in sums]) / max(tokens[0], 1),
                    "aux_loss": (relative_load * probability).sum(axis=1),
                    "z_loss": np.array([float(s.z_loss) for s in sums]) / max(tokens[0], 1),
                },
            )
        )


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums over the tokens of one layer, on its device."""

    tokens: "Tensor"
    counts: "Tensor"
    assigned: "Tensor"
    dropped: "Tensor"
    scores: "Tensor"
    entropy: "Tensor"
    z_loss: "Tensor"

    @classmethod
    def of(cls, decision: Decision) -> "_Sums":
        tokens = (decision.indices[..., 0] >= 0).sum()
        scores = decision.scores.flatten(0, -2).double()
        return cls(
            tokens=tokens,
            counts=decision.tokens_per_expert,
            assigned=(decision.indices >= 0).sum(),
            dropped=decision.dropped,
            scores=scores.sum(0),
            entropy=-scores.xlogy(scores).sum(),
            z_loss=decision.z_loss.double() * tokens,
        )

    def plus(self, other: "_Sums") -> "_Sums":
        return _Sums(
            self.tokens + other.tokens,
            self.counts + other.counts,
            self.assigned + other.assigned,
            self.dropped + other.dropped,
            self.scores + other.scores,
            self.entropy + other.entropy,
            self.z_loss + other.z_loss,
        )


def _fetch(values: "Tensor") -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.asarray(values.cpu().numpy(), dtype=np.float64)
