"""Rows that many families share: embeddings, attention, MLPs, experts.

Functions make the variants; a family's table puts them together.
"""

from moe_megatron.families.table import Form, Row, Scope, Source, one

LAYER = "model.layers.{layer}."
_ATTENTION = LAYER + "self_attn."
_LOCAL_NORM = "mlp.linear_fc1.layer_norm_"
_TE_NORM = "pre_mlp_layernorm."

OUTSIDE = (
    one(
        "embedding.word_embeddings.weight",
        "model.embed_tokens.weight",
        "vocab",
        "hidden",
        scope=Scope.MODEL,
    ),
    one("decoder.final_layernorm.weight", "model.norm.weight", "hidden", scope=Scope.MODEL),
    one(
        "output_layer.weight",
        "lm_head.weight",
        "vocab",
        "hidden",
        scope=Scope.MODEL,
        when="untied",
    ),
)
"""Embedding, last norm and output projection."""


def mlp_norms(kind: str = "weight", name: str = "post_attention_layernorm") -> tuple[Row, ...]:
    """The norm before the MLP; the two layer specs name it differently in a MoE layer."""
    source, key = f"{LAYER}{name}.{kind}", _LOCAL_NORM + kind
    return (
        one(key, source, "hidden", scope=Scope.MOE, aliases=(_TE_NORM + kind,)),
        one(key, source, "hidden", scope=Scope.DENSE),
    )


ATTENTION = (
    one("self_attention.linear_qkv.layer_norm_weight", LAYER + "input_layernorm.weight", "hidden"),
    Row(
        key="self_attention.linear_qkv.weight",
        shape=("qkv_rows", "hidden"),
        source=Source(tuple(f"{_ATTENTION}{x}_proj.weight" for x in "qkv"), Form.QKV),
    ),
    Row(
        key="self_attention.linear_qkv.bias",
        shape=("qkv_rows",),
        source=Source(tuple(f"{_ATTENTION}{x}_proj.bias" for x in "qkv"), Form.QKV),
        when="qkv_bias",
    ),
    one("self_attention.linear_proj.weight", _ATTENTION + "o_proj.weight", "hidden", "q_rows"),
    one("self_attention.linear_proj.bias", _ATTENTION + "o_proj.bias", "hidden", when="proj_bias"),
    *mlp_norms(),
)
"""Attention with groups of queries, its norm and the one behind it."""

LAYER_NORM_BIASES = (
    one("self_attention.linear_qkv.layer_norm_bias", LAYER + "input_layernorm.bias", "hidden"),
    one("decoder.final_layernorm.bias", "model.norm.bias", "hidden", scope=Scope.MODEL),
    *mlp_norms("bias"),
)
"""What LayerNorm has besides, where RMSNorm has weights alone."""


def qk_norms(query: str = "head_dim", key: str = "head_dim") -> tuple[Row, ...]:
    """Norms of queries and keys, as wide as these axes."""
    return (
        one(
            "self_attention.q_layernorm.weight", _ATTENTION + "q_norm.weight", query, when="qk_norm"
        ),
        one("self_attention.k_layernorm.weight", _ATTENTION + "k_norm.weight", key, when="qk_norm"),
    )


def gated_mlp(key: str, prefix: str, width: str, **more: object) -> tuple[Row, ...]:
    """Gate, up and down projection of an MLP."""
    return (
        Row(
            key=f"{key}.linear_fc1.weight",
            shape=(f"two_{width}", "hidden"),
            source=Source((f"{prefix}gate_proj.weight", f"{prefix}up_proj.weight")),
            gated=True,
            **more,  # type: ignore[arg-type]
        ),
        one(f"{key}.linear_fc2.weight", f"{prefix}down_proj.weight", "hidden", width, **more),
    )


DENSE_MLP = gated_mlp("mlp", LAYER + "mlp.", "ffn", scope=Scope.DENSE)

MLP_BIASES = (
    Row(
        key="mlp.linear_fc1.bias",
        shape=("two_ffn",),
        source=Source((LAYER + "mlp.gate_proj.bias", LAYER + "mlp.up_proj.bias")),
        scope=Scope.DENSE,
        gated=True,
        when="mlp_bias",
    ),
    one(
        "mlp.linear_fc2.bias",
        LAYER + "mlp.down_proj.bias",
        "hidden",
        scope=Scope.DENSE,
        when="mlp_bias",
    ),
)
"""Biases of a dense MLP."""


def shared_experts(name: str = "shared_experts") -> tuple[Row, ...]:
    """The expert that every token visits."""
    prefix = f"{LAYER}mlp.{name}."
    scope = {"scope": Scope.MOE, "when": "shared_width"}
    return gated_mlp("mlp.shared_experts", prefix, "shared_width", **scope)


def router(name: str = "mlp.gate.weight", fused: str | None = None) -> Row:
    """The matrix that gives each expert its logit."""
    return Row(
        key="mlp.router.weight",
        shape=("experts", "hidden"),
        source=Source((LAYER + name,)),
        fused=None if fused is None else Source((LAYER + fused,)),
        scope=Scope.MOE,
    )


EXPERT_BIAS = one(
    "mlp.router.expert_bias",
    LAYER + "mlp.gate.e_score_correction_bias",
    "experts",
    scope=Scope.MOE,
    when="expert_bias",
    dtype="F32",
)
"""Correction of the choice of experts."""


def experts(
    block: str = "mlp", names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> tuple[Row, ...]:
    """Experts: one by one under `<block>.experts.{expert}`, or together under `mlp.experts`."""
    gate, up, down = (LAYER + block + ".experts.{expert}." + name + ".weight" for name in names)
    return (
        Row(
            key="mlp.experts.experts.linear_fc1.weight",
            shape=("two_expert_width", "hidden"),
            source=Source((gate, up)),
            fused=Source((LAYER + "mlp.experts.gate_up_proj",), Form.STACK),
            scope=Scope.MOE,
            per_expert=True,
            gated=True,
        ),
        Row(
            key="mlp.experts.experts.linear_fc2.weight",
            shape=("hidden", "expert_width"),
            source=Source((down,)),
            fused=Source((LAYER + "mlp.experts.down_proj",), Form.STACK),
            scope=Scope.MOE,
            per_expert=True,
        ),
    )
