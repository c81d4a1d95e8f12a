"""The layer spec of our models: Megatron's own, with a measured router and our local layers."""

import dataclasses
from functools import partial
from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.training.models.gpt import GPTModelConfig

from moe_megatron.config import Architecture, ModelConfig, MoEConfig, ParallelConfig, RunConfig
from moe_megatron.config.architecture import VOCABULARY, default_of
from moe_megatron.config.flags import RULES
from moe_megatron.errors import ConfigError
from moe_megatron.experts import expert_builder
from moe_megatron.mcore.layers.biases import add_head_bias, with_bias
from moe_megatron.mcore.layers.context_attention import ContextAttention
from moe_megatron.mcore.layers.expert_dropout import add_expert_dropout
from moe_megatron.mcore.layers.gradient_marks import mark_parameters
from moe_megatron.mcore.layers.late_qk_norm import LateNormAttention
from moe_megatron.mcore.layers.latent_attention import LatentAttention, set_yarn
from moe_megatron.mcore.layers.local_attention import LocalAttention
from moe_megatron.mcore.layers.local_experts import LocalExperts
from moe_megatron.mcore.layers.measured_router import MeasuredRouter
from moe_megatron.mcore.layers.moe_layer import VariableMoELayer
from moe_megatron.mcore.layers.multipliers import scaled_residual, set_multipliers
from moe_megatron.mcore.layers.norm import LocalNorm
from moe_megatron.mcore.layers.pooled_experts import PooledExperts
from moe_megatron.mcore.layers.qk_norm import NORMS
from moe_megatron.mcore.layers.shared_head import drop_unused_head
from moe_megatron.routing import bind

APPLIED = frozenset(
    (
        "model.qk_norm_scope model.qk_norm_after_rotation model.attention_output_bias "
        "model.lm_head_bias moe.router moe.expert "
        "model.embedding_multiplier model.attention_multiplier model.residual_multiplier "
        "model.logits_divisor model.latent_attention.norm_epsilon"
    ).split()
)
"""Fields of a model that no Megatron flag expresses and that these layers apply."""


def use_our_layers(model_config: GPTModelConfig, config: RunConfig) -> None:
    """Make Megatron build its model from our layers.

    Args:
        model_config: Megatron's model configuration, changed in place.
        config: The run, for what Megatron's configuration cannot express.

    Raises:
        ConfigError: Neither Megatron nor our layers support a field of the model.
    """
    _check_known(config.architecture)
    model_config.transformer_layer_spec = partial(layer_spec, config=config)
    set_multipliers(model_config.transformer, config.model)
    set_yarn(model_config.transformer, config.model)
    model_config.pre_wrap_hooks.append(mark_parameters)
    if config.model.num_prediction_layers:
        model_config.pre_wrap_hooks.append(drop_unused_head)
    if config.model.lm_head_bias:
        model_config.pre_wrap_hooks.append(add_head_bias)
    if config.moe.expert_dropout:
        add = partial(add_expert_dropout, rate=config.moe.expert_dropout)
        model_config.pre_wrap_hooks.append(add)


def _check_known(architecture: Architecture) -> None:
    flags = {rule.field for rule in RULES}
    for name in architecture.leaf_names("tensors", "function"):
        if name in flags or name in APPLIED or name == VOCABULARY:
            continue
        if architecture.value(name) != default_of(name):
            raise ConfigError(
                f"{name} ({architecture.value(name)}) is supported neither by a Megatron flag nor "
                "by one of our layers; leave it at its default."
            )


def layer_spec(
    model_config: GPTModelConfig, vp_stage: int | None = None, *, config: RunConfig
) -> Any:
    """The spec of the decoder layers that one pipeline stage builds.

    Args:
        model_config: Megatron's model configuration.
        vp_stage: Virtual pipeline stage, if any.
        config: The run.
    """
    transformer = model_config.transformer
    block = get_gpt_decoder_block_spec(
        transformer,
        use_transformer_engine=transformer.transformer_impl == "transformer_engine",
        normalization=transformer.normalization,
        qk_l2_norm=transformer.qk_l2_norm,
        vp_stage=vp_stage,
    )
    return adapt_block(block, config)


def adapt_block(block: TransformerBlockSubmodules, config: RunConfig) -> TransformerBlockSubmodules:
    """Copy a block spec of Megatron's with our router and local layers in it.

    Args:
        block: Megatron's spec, which is not changed.
        config: The run, for what its layers have beyond Megatron's.
    """
    return dataclasses.replace(
        block,
        layer_specs=[
            dataclasses.replace(layer, submodules=adapt_layer(layer.submodules, config))
            for layer in block.layer_specs
        ],
        layer_norm=_local_norm(block.layer_norm),
    )


def adapt_layer(submodules: Any, config: RunConfig) -> Any:
    """The submodules of a transformer layer, with our router and local layers among them.

    Args:
        submodules: Megatron's, which are not changed.
        config: The run, for what its layers have beyond Megatron's.
    """
    attention = submodules.self_attention
    replaced = _replace_attention(replace_norms(attention.submodules), config.parallel)
    attention = dataclasses.replace(
        attention,
        **_attention_class(attention, config.model),
        submodules=dataclasses.replace(replaced, **_attention_changes(replaced, config.model)),
    )
    return dataclasses.replace(
        replace_norms(submodules),
        self_attention=attention,
        mlp=_adapt_mlp(submodules.mlp, config.moe),
        **_residual_adds(config.model),
    )


def _attention_class(attention: Any, model: ModelConfig) -> dict[str, Any]:
    """Class and parameters of an attention of ours; empty to keep Megatron's."""
    if attention.module is MLASelfAttention and model.latent_attention is not None:
        epsilon = model.latent_attention.norm_epsilon
        parameters = {} if epsilon is None else {"latent_epsilon": epsilon}
        return {"module": LatentAttention, "params": {**attention.params, **parameters}}
    if model.qk_norm and model.qk_norm_after_rotation:
        return {"module": LateNormAttention}
    return {}


def _attention_changes(submodules: Any, model: ModelConfig) -> dict[str, Any]:
    """The submodules in which the model's attention differs from Megatron's, by name."""
    changes: dict[str, Any] = {}
    if model.qk_norm and model.qk_norm_scope == "all_heads":
        changes |= NORMS
    if model.attention_output_bias:
        changes["linear_proj"] = with_bias(submodules.linear_proj)
    return changes


def _residual_adds(model: ModelConfig) -> dict[str, Any]:
    """The functions that add to the residual stream; empty to keep Megatron's."""
    if model.residual_multiplier == 1.0:
        return {}
    add = scaled_residual(model.residual_multiplier)
    return {"self_attn_bda": add, "mlp_bda": add}


def replace_norms(submodules: Any) -> Any:
    """The submodules, with norms that allow sequence parallelism without Transformer Engine."""
    norms = {
        field.name: LocalNorm
        for field in dataclasses.fields(submodules)
        if getattr(submodules, field.name) is WrappedTorchNorm
    }
    return dataclasses.replace(submodules, **norms)


def _replace_attention(submodules: Any, parallel: ParallelConfig) -> Any:
    if getattr(submodules, "core_attention", None) is not DotProductAttention:
        return submodules
    local = LocalAttention if parallel.context_parallel_size == 1 else ContextAttention
    return dataclasses.replace(submodules, core_attention=local)


def _local_norm(norm: Any) -> Any:
    return LocalNorm if norm is WrappedTorchNorm else norm


def _adapt_mlp(mlp: Any, moe: MoEConfig) -> Any:
    if not (isinstance(mlp, partial) and mlp.func is MoELayer):
        return mlp
    route, builder = bind(moe), expert_builder(moe)
    experts = mlp.keywords["submodules"].experts
    submodules = dataclasses.replace(
        mlp.keywords["submodules"],
        router=partial(MeasuredRouter, route=route),
        experts=(
            _local_experts(experts) if builder is None else partial(PooledExperts, builder=builder)
        ),
    )
    layer = MoELayer if route.router.fixed_number else VariableMoELayer
    return partial(layer, **{**mlp.keywords, "submodules": submodules})


def _local_experts(experts: Any) -> Any:
    if isinstance(experts, partial) and experts.func is SequentialMLP:
        return partial(LocalExperts, *experts.args, **experts.keywords)
    return LocalExperts if experts is SequentialMLP else experts
