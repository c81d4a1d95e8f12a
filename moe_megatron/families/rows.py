"""Rows that many families share: embeddings, attention, MLPs, experts.

Functions build variants of them; a family's table combines them.
"""

from moe_megatron.families.table import Form, Row, Scope, Source, one_to_one

LAYER = "model.layers.{layer}."
_ATTENTION = LAYER + "self_attn."
_LOCAL_NORM = "mlp.linear_fc1.layer_norm_"
_TE_NORM = "pre_mlp_layernorm."

OUTSIDE = (
    one_to_one(
        "embedding.word_embeddings.weight",
        "model.embed_tokens.weight",
        "vocab",
        "hidden",
        scope=Scope.MODEL,
    ),
    one_to_one("decoder.final_layernorm.weight", "model.norm.weight", "hidden", scope=Scope.MODEL),
    one_to_one(
        "output_layer.weight",
        "lm_head.weight",
        "vocab",
        "hidden",
        scope=Scope.MODEL,
        when="untied",
    ),
)
"""Embedding, last norm and output projection."""


def kept(name: str, *shape: str | int, **more: object) -> Row:
    """A tensor of each layer that Megatron has no name for, and that keeps its own."""
    return one_to_one(name, LAYER + name, *shape, kept=True, **more)


def mlp_norms(kind: str = "weight", name: str = "post_attention_layernorm") -> tuple[Row, ...]:
    """The norm before the MLP; in a MoE layer the two layer specs name it differently."""
    source, key = f"{LAYER}{name}.{kind}", _LOCAL_NORM + kind
    return (
        one_to_one(key, source, "hidden", scope=Scope.MOE, aliases=(_TE_NORM + kind,)),
        one_to_one(key, source, "hidden", scope=Scope.DENSE),
    )


ATTENTION = (
    one_to_one(
        "self_attention.linear_qkv.layer_norm_weight", LAYER + "input_layernorm.weight", "hidden"
    ),
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
    one_to_one(
        "self_attention.linear_proj.weight", _ATTENTION + "o_proj.weight", "hidden", "q_rows"
    ),
    one_to_one(
        "self_attention.linear_proj.bias", _ATTENTION + "o_proj.bias", "hidden", when="proj_bias"
    ),
    *mlp_norms(),
)
"""Grouped-query attention with the norms before and after it."""

LAYER_NORM_BIASES = (
    one_to_one(
        "self_attention.linear_qkv.layer_norm_bias", LAYER + "input_layernorm.bias", "hidden"
    ),
    one_to_one("decoder.final_layernorm.bias", "model.norm.bias", "hidden", scope=Scope.MODEL),
    *mlp_norms("bias"),
)
"""Biases of LayerNorm; RMSNorm has weights only."""


def qk_norms(
    query: str = "head_dim",
    key: str = "head_dim",
    names: tuple[str, str] = ("q_norm", "k_norm"),
) -> tuple[Row, ...]:
    """Norms of queries and keys; `query` and `key` name the axes that give their widths."""
    return tuple(
        one_to_one(
            f"self_attention.{letter}_layernorm.weight",
            f"{_ATTENTION}{name}.weight",
            width,
            when="qk_norm",
        )
        for letter, name, width in zip("qk", names, (query, key), strict=True)
    )


def gated_mlp(key: str, prefix: str, width: str, **more: object) -> tuple[Row, ...]:
    """Gate, up and down projections of an MLP."""
    return (
        Row(
            key=f"{key}.linear_fc1.weight",
            shape=(f"two_{width}", "hidden"),
            source=Source((f"{prefix}gate_proj.weight", f"{prefix}up_proj.weight")),
            gated=True,
            **more,  # type: ignore[arg-type]
        ),
        one_to_one(
            f"{key}.linear_fc2.weight", f"{prefix}down_proj.weight", "hidden", width, **more
        ),
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
    one_to_one(
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
    """The matrix of the gate, [experts, hidden], which gives each expert its logit."""
    return Row(
        key="mlp.router.weight",
        shape=("experts", "hidden"),
        source=Source((LAYER + name,)),
        fused=None if fused is None else Source((LAYER + fused,)),
        scope=Scope.MOE,
    )


EXPERT_BIAS = one_to_one(
    "mlp.router.expert_bias",
    LAYER + "mlp.gate.e_score_correction_bias",
    "experts",
    scope=Scope.MOE,
    when="expert_bias",
    dtype="F32",
)
"""Bias that corrects the scores that select experts."""


def experts(
    block: str = "mlp", names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> tuple[Row, ...]:
    """Experts: separate tensors `<block>.experts.{expert}`, or stacked under `mlp.experts`."""
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
