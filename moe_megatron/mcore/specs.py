"""The layer spec of our models: Megatron's own, with a measured router and our local layers."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.training.models.gpt import GPTModelConfig

from moe_megatron.config.model import ModelConfig, QKNormScope
from moe_megatron.mcore.attention import CausalAttention
from moe_megatron.mcore.experts import LocalExperts
from moe_megatron.mcore.latent_attention import LatentAttention
from moe_megatron.mcore.norm import LocalNorm
from moe_megatron.mcore.qk_norm import NORMS
from moe_megatron.mcore.router import MeasuredRouter


def use_our_layers(model_config: GPTModelConfig, model: ModelConfig) -> None:
    """Let a model of Megatron's be built of our layers.

    Args:
        model_config: Megatron's model configuration, which is changed.
        model: Ours, for what Megatron's cannot say.
    """
    model_config.transformer_layer_spec = partial(layer_spec, qk_norm_scope=model.qk_norm_scope)


def layer_spec(
    model_config: GPTModelConfig,
    vp_stage: int | None = None,
    *,
    qk_norm_scope: QKNormScope = "head",
) -> Any:
    """The spec of the decoder layers that one pipeline stage builds.

    Args:
        model_config: Megatron's model configuration.
        vp_stage: Virtual pipeline stage, if any.
        qk_norm_scope: What norms of queries and keys span.
    """
    transformer = model_config.transformer
    block = get_gpt_decoder_block_spec(
        transformer,
        use_transformer_engine=transformer.transformer_impl == "transformer_engine",
        normalization=transformer.normalization,
        qk_l2_norm=transformer.qk_l2_norm,
        vp_stage=vp_stage,
    )
    norms = NORMS if transformer.qk_layernorm and qk_norm_scope == "all_heads" else {}
    return adapt_block(block, norms)


def adapt_block(
    block: TransformerBlockSubmodules, attention: Mapping[str, Any] = MappingProxyType({})
) -> TransformerBlockSubmodules:
    """Put our router and local layers into a block spec of Megatron's; everything else stays.

    Args:
        block: Megatron's.
        attention: Submodules of the attention to put in besides.
    """
    return dataclasses.replace(
        block,
        layer_specs=[
            dataclasses.replace(layer, submodules=_adapt_layer(layer.submodules, attention))
            for layer in block.layer_specs
        ],
        layer_norm=_local_norm(block.layer_norm),
    )


def _adapt_layer(submodules: Any, in_attention: Mapping[str, Any]) -> Any:
    attention = submodules.self_attention
    replaced = _replace_attention(_replace_norms(attention.submodules))
    attention = dataclasses.replace(
        attention,
        module=LatentAttention if attention.module is MLASelfAttention else attention.module,
        submodules=dataclasses.replace(replaced, **in_attention),
    )
    return dataclasses.replace(
        _replace_norms(submodules), self_attention=attention, mlp=_measured(submodules.mlp)
    )


def _replace_norms(submodules: Any) -> Any:
    norms = {
        field.name: LocalNorm
        for field in dataclasses.fields(submodules)
        if getattr(submodules, field.name) is WrappedTorchNorm
    }
    return dataclasses.replace(submodules, **norms)


def _replace_attention(submodules: Any) -> Any:
    if getattr(submodules, "core_attention", None) is not DotProductAttention:
        return submodules
    return dataclasses.replace(submodules, core_attention=CausalAttention)


def _local_norm(norm: Any) -> Any:
    return LocalNorm if norm is WrappedTorchNorm else norm


def _measured(mlp: Any) -> Any:
    if not (isinstance(mlp, partial) and mlp.func is MoELayer):
        return mlp
    submodules = dataclasses.replace(
        mlp.keywords["submodules"],
        router=MeasuredRouter,
        experts=_local_experts(mlp.keywords["submodules"].experts),
    )
    return partial(MoELayer, **{**mlp.keywords, "submodules": submodules})


def _local_experts(experts: Any) -> Any:
    if isinstance(experts, partial) and experts.func is SequentialMLP:
        return partial(LocalExperts, *experts.args, **experts.keywords)
    return LocalExperts if experts is SequentialMLP else experts
