"""The experts and the router: how many, how wide, how tokens choose them and how load is balanced.

Names follow Megatron-Core's `moe_*` options without their prefix. It does not know the model
around the experts, nor how the experts are spread over processes (`parallel`).
"""

from dataclasses import dataclass
from typing import Literal

from moe_megatron.config import checks
from moe_megatron.config.convert import conform
from moe_megatron.errors import ConfigError

ScoreFunction = Literal["softmax", "sigmoid", "sqrtsoftplus"]
RouterAlgorithm = Literal["top_k", "sparse_mixer"]
LoadBalancing = Literal[
    "aux_loss", "seq_aux_loss", "global_aux_loss", "sinkhorn", "quantile_balancing", "none"
]
TokenDispatcher = Literal["alltoall", "allgather", "flex"]

# These balance by their own means; Megatron refuses them together with an auxiliary loss.
_BALANCES_WITHOUT_LOSS = ("sinkhorn", "quantile_balancing")


@dataclass(frozen=True, kw_only=True, slots=True)
class MoEConfig:
    """Experts, router and load balancing of every MoE layer.

    Raises:
        ConfigError: If a value is out of range, or two options exclude each other.
    """

    num_experts: int | None = 8
    """Experts in each MoE layer; null: a dense model, and the rest of this section is unused."""

    top_k: int = 2
    """Experts that each token is sent to."""

    expert_hidden_size: int | None = None
    """Inner width of one expert, in features; null: that of a dense MLP."""

    shared_expert_hidden_size: int | None = None
    """Inner width of an expert that every token visits besides its top_k; null: there is none."""

    layer_frequency: int | tuple[int, ...] = 1
    """Which layers are MoE layers: n for one in every n, starting with the first, or a list with
    1 (MoE) or 0 (dense) for each layer."""

    router_algorithm: RouterAlgorithm = "top_k"
    """How a token chooses its experts: the best scores at once, or one expert after the other, in
    training at random (SparseMixer-v2, arXiv:2409.12136; PhiMoE)."""

    sparse_mixer_jitter: float = 0.01
    """With sparse_mixer: how far a score may be behind the best one, half and in parts of it, and
    still be chosen."""

    router_score_function: ScoreFunction = "softmax"
    """Turns the router's logits into scores."""

    pre_softmax: bool = False
    """Take the softmax over all experts before top_k, not over the chosen ones after it. The
    weights of a token then sum to less than 1. Needed with top_k 1."""

    router_dtype: Literal["fp32", "fp64"] | None = "fp32"
    """Precision of the routing; null: that of the model."""

    load_balancing: LoadBalancing = "aux_loss"
    """How load is balanced: a loss per micro-batch (Switch), per sequence or per global batch,
    an assignment algorithm, a bias from quantiles, or nothing."""

    aux_loss_coef: float = 0.01
    """Weight of the load balancing loss."""

    z_loss_coef: float = 0.001
    """Weight of the router z-loss, which keeps logits small (ST-MoE, arXiv:2202.08906)."""

    capacity_factor: float | None = None
    """Tokens an expert accepts, in multiples of an even share; the rest are dropped. null: none
    are ever dropped."""

    pad_to_capacity: bool = False
    """Pad every expert's input to its capacity, so that shapes never change."""

    drop_policy: Literal["probs", "position"] = "probs"
    """Which tokens a full expert drops: the least probable, or the last."""

    input_jitter: float | None = None
    """Scale the router's input by noise from [1 - x, 1 + x] (Switch); null: no noise."""

    expert_bias: bool = False
    """Balance by a bias on the choice of experts, without a loss (arXiv:2408.15664)."""

    expert_bias_update_rate: float = 1e-3
    """Step by which that bias moves after each global batch."""

    num_groups: int | None = None
    """Groups of experts for group-limited routing (DeepSeek-V2); null: no groups."""

    group_top_k: int | None = None
    """Groups that a token may choose its experts from; set together with num_groups."""

    top_k_scaling: float | None = None
    """Multiplies the combine weights of the chosen experts; null: no scaling."""

    token_dispatcher: TokenDispatcher = "alltoall"
    """How tokens travel to the processes of their experts; flex needs DeepEP or HybridEP."""

    grouped_gemm: bool | None = None
    """Run the experts of a process as one grouped matrix product; null: where it is available."""

    def __post_init__(self) -> None:
        conform(self)
        checks.at_least(
            self,
            1,
            "num_experts",
            "top_k",
            "expert_hidden_size",
            "shared_expert_hidden_size",
            "num_groups",
            "group_top_k",
        )
        checks.at_least(self, 0, "aux_loss_coef", "z_loss_coef")
        checks.positive(self, "capacity_factor", "expert_bias_update_rate", "top_k_scaling")
        checks.fraction(self, "input_jitter", "sparse_mixer_jitter")
        self._check_layer_frequency()
        if self.num_experts is not None:
            self._check_router(self.num_experts)
            self._check_balancing()
            self._check_groups(self.num_experts)

    def _check_layer_frequency(self) -> None:
        pattern = self.layer_frequency
        if isinstance(pattern, int):
            checks.at_least(self, 1, "layer_frequency")
        elif 1 not in pattern or not set(pattern) <= {0, 1}:
            raise ConfigError(
                "moe.layer_frequency as a list needs a 1 (MoE) or 0 (dense) for each layer and at "
                f"least one 1, not {list(pattern)}."
            )

    def _check_router(self, num_experts: int) -> None:
        if self.top_k > num_experts:
            raise ConfigError(
                f"moe.top_k ({self.top_k}) must not exceed moe.num_experts ({num_experts})."
            )
        if self.router_algorithm == "sparse_mixer":
            self._check_sparse_mixer()
            return
        softmax_of_one = self.router_score_function == "softmax" and not self.pre_softmax
        if self.top_k == 1 and softmax_of_one and self.load_balancing != "sinkhorn":
            raise ConfigError(
                "moe.top_k 1 needs moe.pre_softmax true: a softmax over the one chosen expert is "
                "always 1 and would give the router no gradient."
            )
        if self.expert_bias and self.router_score_function == "softmax":
            raise ConfigError(
                "moe.expert_bias works with independent scores only; set "
                "moe.router_score_function to 'sigmoid' or 'sqrtsoftplus', not 'softmax'."
            )

    def _check_sparse_mixer(self) -> None:
        unlike = {
            "router_score_function": self.router_score_function != "softmax",
            "pre_softmax": self.pre_softmax,
            "load_balancing": self.load_balancing in _BALANCES_WITHOUT_LOSS,
            "capacity_factor": self.capacity_factor is not None,
            "expert_bias": self.expert_bias,
            "num_groups": self.num_groups is not None,
            "top_k_scaling": self.top_k_scaling is not None,
        }
        found = [
            f"moe.{field} ({getattr(self, field)})" for field, is_set in unlike.items() if is_set
        ]
        if found:
            raise ConfigError(
                f"moe.router_algorithm 'sparse_mixer' does not work with {', '.join(found)}; leave "
                "such fields at their defaults, or use 'top_k'."
            )

    def _check_balancing(self) -> None:
        own_means = self.load_balancing in _BALANCES_WITHOUT_LOSS
        if own_means and self.aux_loss_coef != 0:
            raise ConfigError(
                f"moe.load_balancing '{self.load_balancing}' works without an auxiliary loss; set "
                f"moe.aux_loss_coef to 0, not {self.aux_loss_coef}."
            )
        if own_means and self.capacity_factor is not None:
            raise ConfigError(
                f"moe.capacity_factor ({self.capacity_factor}) does not work with "
                f"moe.load_balancing '{self.load_balancing}'; set it to null, or balance with "
                "'aux_loss', 'seq_aux_loss', 'global_aux_loss' or 'none'."
            )
        if self.pad_to_capacity and self.capacity_factor is None:
            raise ConfigError("moe.pad_to_capacity needs a moe.capacity_factor, for example 1.25.")

    def _check_groups(self, num_experts: int) -> None:
        groups, chosen = self.num_groups, self.group_top_k
        if groups is None and chosen is None:
            return
        if groups is None or chosen is None:
            raise ConfigError(
                f"moe.num_groups ({groups}) and moe.group_top_k ({chosen}) belong together; set "
                "both, or neither."
            )
        if num_experts % groups:
            raise ConfigError(
                f"moe.num_groups ({groups}) must divide moe.num_experts ({num_experts}); "
                f"try {checks.join_words(checks.divisors(num_experts))}."
            )
        reachable = chosen * (num_experts // groups)
        if not chosen <= min(groups, self.top_k) or reachable < self.top_k:
            raise ConfigError(
                f"moe.group_top_k ({chosen}) must not exceed moe.num_groups ({groups}) or "
                f"moe.top_k ({self.top_k}), and its groups must hold top_k experts "
                f"(they hold {reachable})."
            )

    def layer_numbers(self, num_layers: int) -> tuple[int, ...]:
        """The MoE layers of a model, as global layer numbers that count from 1.

        Args:
            num_layers: Layers of the model; a `layer_frequency` list must have this length
                (`RunConfig.validate` checks it).
        """
        if self.num_experts is None:
            return ()
        if isinstance(self.layer_frequency, int):
            return tuple(range(1, num_layers + 1, self.layer_frequency))
        return tuple(number for number, moe in enumerate(self.layer_frequency, start=1) if moe)
