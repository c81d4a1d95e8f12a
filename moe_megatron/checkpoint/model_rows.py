"""The mapping table of `MoEModel`: its parameters, and the Megatron keys that they make up.

With it `MoEModel` is one more layout beside those of the Hugging Face families: links of both that
have the same Megatron key, layer and expert are the same matrix. Data alone, like `families`.
"""

from collections.abc import Iterator

from moe_megatron.config import ModelConfig, MoEConfig
from moe_megatron.families.geometry import Geometry
from moe_megatron.families.links import Link
from moe_megatron.families.table import Form, Row, Scope, Source, expand, one
from moe_megatron.model.extras import Extras
from moe_megatron.model.storage import Architecture

_LAYER = "layers.{layer}."
_QKV = tuple(f"{_LAYER}attention.{letter}_proj" for letter in "qkv")


def model_links(architecture: Architecture) -> list[Link]:
    """Every parameter of a `MoEModel`, as blocks of Megatron's matrices.

    Args:
        architecture: Which model it is.
    """
    model, moe = architecture.model, architecture.moe
    rows = [*_outside(model), *_attention(model), *_mlp(model), *_moe(model, moe)]
    return expand(rows, _geometry(architecture), fused=False)


def _geometry(architecture: Architecture) -> Geometry:
    model, moe = architecture.model, architecture.moe
    extras = Extras.from_flags(architecture.flags)
    numbers = range(1, model.num_layers + 1)
    moe_layers = moe.layer_numbers(model.num_layers)
    return Geometry(
        family="moe_megatron",
        layers=model.num_layers,
        hidden=model.hidden_size,
        heads=model.num_attention_heads,
        groups=model.key_value_heads,
        head_dim=model.attention_head_dim,
        vocab=architecture.vocab_size,
        ffn=model.dense_ffn_size,
        moe_layers=tuple(number in moe_layers for number in numbers),
        experts=moe.num_experts or 0,
        top_k=moe.top_k,
        expert_width=moe.expert_hidden_size or model.dense_ffn_size,
        shared_width=moe.shared_expert_hidden_size or 0,
        tied=model.tie_embeddings,
        qk_norm=model.qk_norm,
        qkv_bias=model.add_bias or extras.qkv_bias,
        proj_bias=model.add_bias or model.attention_output_bias,
        head_bias=model.lm_head_bias,
        shared_gate=extras.shared_expert_gate and moe.shared_expert_hidden_size is not None,
    )


def _kinds(norm: str, model: ModelConfig) -> tuple[str, ...]:
    """Parameters of a norm ("norm") or of a linear layer ("linear")."""
    has_bias = model.norm == "LayerNorm" if norm == "norm" else model.add_bias
    return ("weight", "bias") if has_bias else ("weight",)


def _outside(model: ModelConfig) -> Iterator[Row]:
    scope = Scope.MODEL
    yield one(
        "embedding.word_embeddings.weight", "embed_tokens.weight", "vocab", "hidden", scope=scope
    )
    if model.position_embedding == "learned_absolute":
        positions = model.max_position_embeddings or 0
        yield one(
            "embedding.position_embeddings.weight",
            "embed_positions.weight",
            positions,
            "hidden",
            scope=scope,
        )
    for kind in _kinds("norm", model):
        yield one(f"decoder.final_layernorm.{kind}", f"final_norm.{kind}", "hidden", scope=scope)
    yield one(
        "output_layer.weight", "lm_head.weight", "vocab", "hidden", scope=scope, when="untied"
    )
    yield one("output_layer.bias", "lm_head_bias", "vocab", scope=scope, when="head_bias")


def _attention(model: ModelConfig) -> Iterator[Row]:
    for kind in _kinds("norm", model):
        qkv, local = "self_attention.linear_qkv.layer_norm_", "mlp.linear_fc1.layer_norm_"
        yield one(qkv + kind, f"{_LAYER}input_norm.{kind}", "hidden")
        source, te = f"{_LAYER}mlp_norm.{kind}", (f"pre_mlp_layernorm.{kind}",)
        yield one(local + kind, source, "hidden", scope=Scope.MOE, aliases=te)
        yield one(local + kind, source, "hidden", scope=Scope.DENSE)
        whole = model.qk_norm_scope == "all_heads"
        for letter, width in (("q", "q_rows"), ("k", "kv_rows")):
            key, name = f"self_attention.{letter}_layernorm", f"attention.{letter}_norm"
            axis = width if whole else "head_dim"
            yield one(f"{key}.{kind}", f"{_LAYER}{name}.{kind}", axis, when="qk_norm")
    for kind, axes, when in (("weight", ("hidden",), ""), ("bias", (), "qkv_bias")):
        yield Row(
            key=f"self_attention.linear_qkv.{kind}",
            shape=("qkv_rows", *axes),
            source=Source(tuple(f"{name}.{kind}" for name in _QKV), Form.QKV),
            when=when,
        )
    key, name = "self_attention.linear_proj", f"{_LAYER}attention.o_proj"
    yield one(f"{key}.weight", f"{name}.weight", "hidden", "q_rows")
    yield one(f"{key}.bias", f"{name}.bias", "hidden", when="proj_bias")


def _mlp(model: ModelConfig) -> Iterator[Row]:
    for kind in _kinds("linear", model):
        yield from _feed_forward("mlp", "mlp", "ffn", kind, model, scope=Scope.DENSE)


def _moe(model: ModelConfig, moe: MoEConfig) -> Iterator[Row]:
    for kind in _kinds("linear", model):
        more = ("hidden",) if kind == "weight" else ()
        name = f"{_LAYER}moe.router.{kind}"
        yield one(f"mlp.router.{kind}", name, "experts", *more, scope=Scope.MOE)
        yield from _feed_forward(
            "mlp.experts.experts",
            "moe.experts.{expert}",
            "expert_width",
            kind,
            model,
            scope=Scope.MOE,
            per_expert=True,
        )
    if moe.expert_bias:
        name = f"{_LAYER}moe.router.expert_bias"
        yield one("mlp.router.expert_bias", name, "experts", scope=Scope.MOE, dtype="F32")
    yield one(
        "mlp.shared_experts.gate_weight",
        f"{_LAYER}moe.shared_gate.weight",
        1,
        "hidden",
        scope=Scope.MOE,
        when="shared_gate",
    )
    yield from _feed_forward(
        "mlp.shared_experts",
        "moe.shared_expert",
        "shared_width",
        "weight",
        model,
        scope=Scope.MOE,
        when="shared_width",
    )


def _feed_forward(
    key: str, name: str, width: str, kind: str, model: ModelConfig, **more: object
) -> Iterator[Row]:
    gated = model.activation == "swiglu"
    parts = ("gate_proj", "up_proj") if gated else ("up_proj",)
    side = ("hidden",) if kind == "weight" else ()
    yield Row(
        key=f"{key}.linear_fc1.{kind}",
        shape=(f"two_{width}" if gated else width, *side),
        source=Source(tuple(f"{_LAYER}{name}.{part}.{kind}" for part in parts)),
        gated=gated,
        **more,  # type: ignore[arg-type]
    )
    side = (width,) if kind == "weight" else ()
    yield one(
        f"{key}.linear_fc2.{kind}", f"{_LAYER}{name}.down_proj.{kind}", "hidden", *side, **more
    )
