"""`RouterMonitor`: counts what the routers of a model do while it is used, in training or not.

It sums on the model's device and transfers the sums once for each `track` block. The result is a
`RoutingProfile` like that of a training run, so it can be used for placement, pruning and cost
analysis. For the decisions about single tokens see `analyzer`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_megatron.analytics.routers import Decision, RouterHooks
from moe_megatron.analytics.shown_blocks import ShownBlocks
from moe_megatron.config.arguments import explained
from moe_megatron.errors import DataError
from moe_megatron.live.dashboard_process import PORT, DashboardProcess
from moe_megatron.telemetry.catalog import quantities
from moe_megatron.telemetry.quantity import Quantity, StepSums
from moe_megatron.telemetry.values.expert_load import part_of_maximum
from moe_megatron.telemetry.values.json_fields import Float64Array
from moe_megatron.telemetry.values.profile import RoutingProfile

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
        dead_experts: number of experts that no token has reached, over all layers.
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


@explained
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
        self._quantities: tuple[Quantity, ...] = ()
        self._profile = self._empty()
        self._shown: ShownBlocks | None = None

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
        self._sums, self._quantities = {}, quantities()
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
        copy = self._empty()
        copy.merge(self._counted())
        copy.routers = self._hooks.digests()
        return copy

    def _counted(self) -> RoutingProfile:
        """The counts themselves, without a look at the weights; they are not to be changed."""
        if not self._profile.tokens:
            raise DataError(
                "no forward pass was tracked yet; run the model inside `with monitor.track():`"
            )
        return self._profile

    def get_stats(self) -> RouterStats:
        """Summarizes everything counted so far.

        Raises:
            DataError: nothing was counted yet.
        """
        profile = self._counted()
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

    def start_dashboard(self, port: int = PORT) -> DashboardProcess:
        """Shows the tracked blocks in a browser, each as one step: from `keep_blocks` or now on.

        The server is a process of its own, which ends with this one or by `close`.

        Args:
            port: of the server on this machine; 0 for any free one.

        Returns:
            the dashboard, with its address as `url`; a notebook shows it below the cell.

        Raises:
            ConfigError: the port is taken.
        """
        return self._blocks().show(port)

    def keep_blocks(self) -> Path:
        """Keeps the blocks that are tracked from now on, each as one step of a run.

        Returns:
            the folder of that run, which ends with this object; the same on a second call.
        """
        return self._blocks().folder

    def _blocks(self) -> ShownBlocks:
        if self._shown is None:
            self._shown = ShownBlocks()
        return self._shown

    def reset(self) -> None:
        """Forgets everything counted so far; a dashboard begins anew."""
        self._profile = self._empty()
        if self._shown is not None:
            self._shown.begin()

    def _empty(self) -> RoutingProfile:
        shape = self._hooks.shape
        return RoutingProfile.empty(
            layers=shape.layers, num_experts=shape.num_experts, top_k=shape.top_k
        )

    def _add(self, decision: Decision) -> None:
        new = _Sums.of(decision, self._quantities)
        old = self._sums.get(decision.layer)
        self._sums[decision.layer] = new if old is None else old.plus(new)

    def _finish(self) -> None:
        """Adds the block to the profile."""
        layers = self.layers
        if not self._sums:
            return
        sums = [self._sums[layer] for layer in layers if layer in self._sums]
        tokens = [layer.tokens for layer in sums]
        if len(sums) < len(layers) or len(set(tokens)) > 1:
            seen = dict(zip(sorted(self._sums), tokens, strict=True))
            raise DataError(
                "a tracked block must run every layer on the same tokens, but of the layers "
                f"{layers} these ran, with so many tokens: {seen}; run the whole model"
            )

        def stack(values: Iterable["Tensor"]) -> Float64Array:
            return np.stack([_fetch(value) for value in values])

        step = StepSums(
            tokens=tokens[0],
            top_k=self._hooks.shape.top_k,
            tokens_per_expert=stack(layer.tokens_per_expert for layer in sums).astype(np.int64),
            assigned=stack(layer.assigned for layer in sums).astype(np.int64),
            prob_sums=stack(layer.prob_sums for layer in sums),
            means={
                quantity.name: stack(layer.sums[place] for layer in sums) / max(tokens[0], 1)
                for place, quantity in enumerate(_measured(self._quantities))
            },
        )
        snapshot = step.snapshot(self._profile.steps + 1, layers, self._quantities)
        self._profile.add(snapshot)
        if self._shown is not None:
            self._shown.add(snapshot)


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums over the tokens of one layer, on its device."""

    tokens: int
    tokens_per_expert: "Tensor"
    assigned: "Tensor"
    prob_sums: "Tensor"
    sums: tuple["Tensor", ...]
    """Of the measured quantities."""

    @classmethod
    def of(cls, decision: Decision, quantities: Iterable[Quantity]) -> "_Sums":
        routed = decision.routed
        return cls(
            tokens=len(routed.logits_TE),
            tokens_per_expert=routed.routing_map_TE.sum(0),
            assigned=(decision.indices >= 0).sum(),
            prob_sums=routed.scores_TE.double().sum(0),
            sums=tuple(it.of_tokens(routed).double().sum() for it in _measured(quantities)),
        )

    def plus(self, other: "_Sums") -> "_Sums":
        return _Sums(
            self.tokens + other.tokens,
            self.tokens_per_expert + other.tokens_per_expert,
            self.assigned + other.assigned,
            self.prob_sums + other.prob_sums,
            tuple(mine + its for mine, its in zip(self.sums, other.sums, strict=True)),
        )


def _measured(quantities: Iterable[Quantity]) -> list[Quantity]:
    return [quantity for quantity in quantities if quantity.measure is not None]


def _fetch(values: "Tensor") -> Float64Array:
    return np.asarray(values.cpu().numpy(), dtype=np.float64)
