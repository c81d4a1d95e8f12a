"""The experts and the router: how many, how wide, how tokens choose them and how load is balanced.

Names follow Megatron-Core's `moe_*` options without their prefix. It does not know the model
around the experts, nor how the experts are spread over processes (`parallel`).
"""

from dataclasses import dataclass
from typing import Literal

from moe_megatron.config import checks
from moe_megatron.config.conform import conform
from moe_megatron.config.expert import ExpertConfig
from moe_megatron.config.fields import Flag, setting
from moe_megatron.config.layer_pattern import read_pattern, write_pattern
from moe_megatron.config.router import RouterConfig
from moe_megatron.errors import ConfigError

LoadBalancing = Literal[
    "aux_loss", "seq_aux_loss", "global_aux_loss", "sinkhorn", "quantile_balancing", "none"
]
TokenDispatcher = Literal["alltoall", "allgather", "flex"]

# These balance without a loss; Megatron rejects them together with an auxiliary loss.
BALANCES_WITHOUT_LOSS = ("sinkhorn", "quantile_balancing")


@dataclass(frozen=True, kw_only=True, slots=True)
class MoEConfig:
    """Experts, router and load balancing of every MoE layer.

    Raises:
        ConfigError: If a value is out of range, or two options exclude each other.
    """

    num_experts: int | None = setting(8, changes="tensors", flag="num-experts")
    """Experts in each MoE layer; null: a dense model, which ignores the rest of this section."""

    top_k: int = setting(2, changes="function", flag="moe-router-topk", adjustable=True)
    """Number of experts that each token is sent to."""

    expert_hidden_size: int | None = setting(None, changes="tensors", flag="moe-ffn-hidden-size")
    """Inner width of one expert, in features; null: that of a dense MLP."""

    expert: ExpertConfig = setting(ExpertConfig(), changes="tensors")
    """What an expert is: the name of a kind, and its options (docs/experts.md lists them); mlp: the
    MLP of the model."""

    shared_expert_hidden_size: int | None = setting(
        None, changes="tensors", flag="moe-shared-expert-intermediate-size"
    )
    """Inner width of a shared expert, which every token visits in addition to its top_k; null: no
    shared expert."""

    shared_expert_gate: bool = setting(False, changes="tensors", flag="moe-shared-expert-gate")
    """Scale the shared expert's output by a gate of its own (Qwen2-MoE)."""

    layer_frequency: int | tuple[int, ...] = setting(
        1,
        changes="tensors",
        flag=Flag(name="moe-layer-freq", write=write_pattern, read=read_pattern),
    )
    """Which layers are MoE layers: n for every n-th layer, starting with the first, or a list with
    1 (MoE) or 0 (dense) for each layer."""

    router: RouterConfig = setting(RouterConfig(), changes="function")
    """How a token chooses its experts: the name of a router, and its options
    (docs/adding_a_router.md lists them)."""

    router_dtype: Literal["fp32", "fp64"] | None = setting(
        "fp32", changes="training", flag="moe-router-dtype"
    )
    """Precision of the routing; null: that of the model."""

    load_balancing: LoadBalancing = setting(
        "aux_loss", changes="training", flag="moe-router-load-balancing-type"
    )
    """How load is balanced: a loss per micro-batch (Switch), per sequence or per global batch,
    an assignment algorithm, a bias from quantiles, or nothing."""

    aux_loss_coef: float = setting(0.01, changes="training", flag="moe-aux-loss-coeff")
    """Weight alpha of the load balancing loss, L = alpha * E * sum_e f_e P_e (Switch)."""

    z_loss_coef: float = setting(0.001, changes="training", flag="moe-z-loss-coeff")
    """Weight of the router z-loss, which keeps logits small (ST-MoE, arXiv:2202.08906)."""

    capacity_factor: float | None = setting(
        None, changes="training", flag="moe-expert-capacity-factor"
    )
    """Tokens that an expert accepts, as a multiple of an even share; the rest are dropped. null:
    none are dropped."""

    pad_to_capacity: bool = setting(
        False, changes="training", flag="moe-pad-expert-input-to-capacity"
    )
    """Pad every expert's input to its capacity, so that shapes stay constant."""

    drop_policy: Literal["probs", "position"] = setting(
        "probs", changes="training", flag="moe-token-drop-policy"
    )
    """Which tokens a full expert drops: the least probable, or the last."""

    input_jitter: float | None = setting(None, changes="training", flag="moe-input-jitter-eps")
    """Multiply the router's input by noise from [1 - x, 1 + x] (Switch); null: no noise."""

    expert_dropout: float = setting(0.0, changes="training")
    """Probability of dropping an inner feature of a routed expert in training (Switch)."""

    expert_bias: bool = setting(False, changes="tensors", flag="moe-router-enable-expert-bias")
    """Balance by a bias on the scores that select experts, without a loss (arXiv:2408.15664)."""

    expert_bias_update_rate: float = setting(
        1e-3, changes="training", flag="moe-router-bias-update-rate"
    )
    """Step by which the expert bias moves after each global batch."""

    token_dispatcher: TokenDispatcher = setting(
        "alltoall", changes="training", flag="moe-token-dispatcher-type"
    )
    """How tokens are sent to the processes of their experts; flex needs DeepEP or HybridEP."""

    grouped_gemm: bool | None = setting(None, changes="training", flag="moe-grouped-gemm")
    """Run the experts of a process as one grouped matrix product; null: if available."""

    def __post_init__(self) -> None:
        conform(self)
        checks.at_least(
            self, 1, "num_experts", "top_k", "expert_hidden_size", "shared_expert_hidden_size"
        )
        checks.at_least(self, 0, "aux_loss_coef", "z_loss_coef")
        checks.positive(self, "capacity_factor", "expert_bias_update_rate")
        checks.fraction(self, "input_jitter", "expert_dropout")
        self._check_layer_frequency()
        if self.num_experts is not None:
            self._check_top_k(self.num_experts)
            self._check_balancing()
            self._check_capacity(self.num_experts)
            self._check_expert()

    def _check_layer_frequency(self) -> None:
        pattern = self.layer_frequency
        if isinstance(pattern, int):
            checks.at_least(self, 1, "layer_frequency")
        elif 1 not in pattern or not set(pattern) <= {0, 1}:
            raise ConfigError(
                "moe.layer_frequency as a list needs a 1 (MoE) or 0 (dense) for each layer and at "
                f"least one 1, not {list(pattern)}."
            )

    def _check_top_k(self, num_experts: int) -> None:
        if self.top_k > num_experts:
            raise ConfigError(
                f"moe.top_k ({self.top_k}) must not exceed moe.num_experts ({num_experts})."
            )

    def _check_balancing(self) -> None:
        without_loss = self.load_balancing in BALANCES_WITHOUT_LOSS
        if without_loss and self.aux_loss_coef != 0:
            raise ConfigError(
                f"moe.load_balancing '{self.load_balancing}' works without an auxiliary loss; set "
                f"moe.aux_loss_coef to 0, not {self.aux_loss_coef}."
            )
        if without_loss and self.expert_bias:
            raise ConfigError(
                f"moe.expert_bias does not work with moe.load_balancing '{self.load_balancing}', "
                "which chooses without it; set expert_bias to false, or load_balancing to 'none' "
                "or a loss."
            )
        if without_loss and self.capacity_factor is not None:
            raise ConfigError(
                f"moe.capacity_factor ({self.capacity_factor}) does not work with "
                f"moe.load_balancing '{self.load_balancing}'; set it to null, or balance with "
                "'aux_loss', 'seq_aux_loss', 'global_aux_loss' or 'none'."
            )

    def _check_capacity(self, num_experts: int) -> None:
        factor = self.capacity_factor
        if self.pad_to_capacity and factor is None:
            raise ConfigError("moe.pad_to_capacity needs a moe.capacity_factor, for example 1.25.")
        if self.pad_to_capacity and factor is not None and factor * self.top_k > num_experts:
            raise ConfigError(
                f"moe.pad_to_capacity with moe.capacity_factor ({factor:g}) fills every expert "
                f"with more tokens than there are: moe.top_k ({self.top_k}) x the factor must not "
                f"exceed moe.num_experts ({num_experts}); set the factor to "
                f"{num_experts / self.top_k:g} or less, or pad_to_capacity to false."
            )

    @property
    def drops_by_weight(self) -> bool:
        """Whether a full expert may drop a token because a later one weighs more.

        So tokens look at later ones, in training and in use. By position they do not.
        """
        factor, experts = self.capacity_factor, self.num_experts
        if factor is None or experts is None or self.drop_policy != "probs":
            return False
        return factor * self.top_k < experts

    def _check_expert(self) -> None:
        """Options that look into the MLP of the model mean nothing for another module."""
        if self.expert.is_model_mlp:
            return
        given = {"expert_dropout": self.expert_dropout, "grouped_gemm": self.grouped_gemm}
        for name, value in given.items():
            if value:
                raise ConfigError(
                    f"moe.{name} ({value}) looks inside the experts, which moe.expert "
                    f"'{self.expert.name}' brings itself; leave it at its default, or use the "
                    "expert 'mlp'."
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
