"""The mapping table of `MoEModel`: its parameters, and the Megatron keys that they make up.

It makes `MoEModel` one more layout like those of the Hugging Face families: two links with the same
Megatron key, layer and expert describe the same matrix.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from moe_megatron.config import Architecture, ModelConfig, MoEConfig
from moe_megatron.families.geometry import Geometry
from moe_megatron.families.links import Link
from moe_megatron.families.table import Form, Row, Scope, Source, expand, one_to_one

_LAYER = "layers.{layer}."
_QKV = tuple(f"{_LAYER}attention.{letter}_proj" for letter in "qkv")


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterTensors:
    """The shapes of the tensors of a router that are its own."""

    weight: tuple[int, ...] = ()
    """Of the weight of its gate; () for the usual matrix, [experts, hidden]."""
    gate: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of further parameters of its gate, by name."""
    state: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of what it remembers, by name."""


_USUAL_ROUTER = RouterTensors()


def model_links(
    architecture: Architecture,
    router: RouterTensors = _USUAL_ROUTER,
    expert: Mapping[str, tuple[int, ...]] | None = None,
) -> list[Link]:
    """Every parameter of a `MoEModel`, as blocks of Megatron's matrices.

    Args:
        architecture: The model.
        router: What its routers have.
        expert: Shapes of the tensors of an expert, by name; None: it is the model's MLP.
    """
    model, moe = architecture.model, architecture.moe
    attention = _attention(model) if model.latent_attention is None else _latent(model)
    rows = [*_outside(model), *attention, *_mlp(model), *_router(model, router)]
    rows += [*_experts(model, expert), *_moe(model, moe)]
    return expand(rows, Geometry(family="moe_megatron", architecture=architecture), fused=False)


def _kinds(norm: str, model: ModelConfig) -> tuple[str, ...]:
    """Parameters of a norm ("norm") or of a linear layer ("linear")."""
    has_bias = model.norm == "LayerNorm" if norm == "norm" else model.add_bias
    return ("weight", "bias") if has_bias else ("weight",)


def _outside(model: ModelConfig) -> Iterator[Row]:
    scope = Scope.MODEL
    yield one_to_one(
        "embedding.word_embeddings.weight", "embed_tokens.weight", "vocab", "hidden", scope=scope
    )
    yield one_to_one(
        "embedding.position_embeddings.weight",
        "embed_positions.weight",
        "positions",
        "hidden",
        scope=scope,
        when="positions",
    )
    for kind in _kinds("norm", model):
        yield one_to_one(
            f"decoder.final_layernorm.{kind}", f"final_norm.{kind}", "hidden", scope=scope
        )
    yield one_to_one(
        "output_layer.weight", "lm_head.weight", "vocab", "hidden", scope=scope, when="untied"
    )
    yield one_to_one("output_layer.bias", "lm_head_bias", "vocab", scope=scope, when="head_bias")


def _attention(model: ModelConfig) -> Iterator[Row]:
    for kind in _kinds("norm", model):
        qkv, local = "self_attention.linear_qkv.layer_norm_", "mlp.linear_fc1.layer_norm_"
        yield one_to_one(qkv + kind, f"{_LAYER}input_norm.{kind}", "hidden")
        source, te = f"{_LAYER}mlp_norm.{kind}", (f"pre_mlp_layernorm.{kind}",)
        yield one_to_one(local + kind, source, "hidden", scope=Scope.MOE, aliases=te)
        yield one_to_one(local + kind, source, "hidden", scope=Scope.DENSE)
        for letter in "qk":
            key, name = f"self_attention.{letter}_layernorm", f"attention.{letter}_norm"
            width = f"{letter}_norm_width"
            yield one_to_one(f"{key}.{kind}", f"{_LAYER}{name}.{kind}", width, when="qk_norm")
    for kind, axes, when in (("weight", ("hidden",), ""), ("bias", (), "qkv_bias")):
        yield Row(
            key=f"self_attention.linear_qkv.{kind}",
            shape=("qkv_rows", *axes),
            source=Source(tuple(f"{name}.{kind}" for name in _QKV), Form.QKV),
            when=when,
        )
    yield from _attention_output(model, "q_rows")


def _latent(model: ModelConfig) -> Iterator[Row]:
    """Latent attention: Transformer Engine has its norms under the matrix that follows."""
    for kind in _kinds("norm", model):
        yield one_to_one(f"input_layernorm.{kind}", f"{_LAYER}input_norm.{kind}", "hidden")
        key, source = f"pre_mlp_layernorm.{kind}", f"{_LAYER}mlp_norm.{kind}"
        te = (f"mlp.linear_fc1.layer_norm_{kind}",)
        yield one_to_one(key, source, "hidden", scope=Scope.MOE)
        yield one_to_one(key, source, "hidden", scope=Scope.DENSE, aliases=te)
        for letter, rank, when in (("q", "q_lora", "q_lora"), ("kv", "kv_lora", "")):
            if model.qk_norm:
                yield one_to_one(
                    f"self_attention.{letter}_layernorm.{kind}",
                    f"{_LAYER}attention.{letter}_norm.{kind}",
                    rank,
                    aliases=(f"self_attention.linear_{letter}_up_proj.layer_norm_{kind}",),
                    when=when,
                )
    for name, rows, columns, when in (
        ("q_proj", "latent_q_rows", "hidden", "full_rank_q"),
        ("q_down_proj", "q_lora", "hidden", "q_lora"),
        ("q_up_proj", "latent_q_rows", "q_lora", "q_lora"),
        ("kv_down_proj", "latent_kv_down_rows", "hidden", ""),
        ("kv_up_proj", "latent_kv_up_rows", "kv_lora", ""),
    ):
        key, source = f"self_attention.linear_{name}.weight", f"{_LAYER}attention.{name}.weight"
        yield one_to_one(key, source, rows, columns, when=when)
    yield from _attention_output(model, "latent_out")


def _attention_output(model: ModelConfig, width: str) -> Iterator[Row]:
    key, name = "self_attention.linear_proj", f"{_LAYER}attention.o_proj"
    yield one_to_one(f"{key}.weight", f"{name}.weight", "hidden", width)
    yield one_to_one(f"{key}.bias", f"{name}.bias", "hidden", when="proj_bias")
    if model.attention_sinks:
        sinks = "self_attention.core_attention.softmax_offset"
        yield one_to_one(sinks, f"{_LAYER}attention.sinks", "heads")


def _mlp(model: ModelConfig) -> Iterator[Row]:
    for kind in _kinds("linear", model):
        yield from _feed_forward("mlp", "mlp", "ffn", kind, model, scope=Scope.DENSE)


def _router(model: ModelConfig, router: RouterTensors) -> Iterator[Row]:
    shapes: dict[str, tuple[str | int, ...]] = {"weight": router.weight or ("experts", "hidden")}
    if "bias" in _kinds("linear", model):
        shapes["bias"] = ("experts",)
    shapes |= {f"gate.{name}": shape for name, shape in router.gate.items()}
    for name, shape in shapes.items():
        key, source = f"mlp.router.{name}", f"{_LAYER}moe.router.{name}"
        yield one_to_one(key, source, *shape, scope=Scope.MOE)
    for name, shape in router.state.items():
        key, source = f"mlp.router.state.{name}", f"{_LAYER}moe.router.state.{name}"
        yield one_to_one(key, source, *shape, scope=Scope.MOE, dtype="F32")


def _experts(model: ModelConfig, own: Mapping[str, tuple[int, ...]] | None) -> Iterator[Row]:
    key, name = "mlp.experts.experts", "moe.experts.{expert}"
    if own is not None:
        for part, shape in own.items():
            source = f"{_LAYER}{name}.{part}"
            yield one_to_one(f"{key}.{part}", source, *shape, scope=Scope.MOE, per_expert=True)
        return
    for kind in _kinds("linear", model):
        yield from _feed_forward(
            key, name, "expert_width", kind, model, scope=Scope.MOE, per_expert=True
        )


def _moe(model: ModelConfig, moe: MoEConfig) -> Iterator[Row]:
    if moe.expert_bias:
        name = f"{_LAYER}moe.router.expert_bias"
        yield one_to_one("mlp.router.expert_bias", name, "experts", scope=Scope.MOE, dtype="F32")
    yield one_to_one(
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
    gated = model.is_gated
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
    yield one_to_one(
        f"{key}.linear_fc2.{kind}", f"{_LAYER}{name}.down_proj.{kind}", "hidden", *side, **more
    )
