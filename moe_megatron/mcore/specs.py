"""The layer spec of our models: Megatron's own, with a measured router and our local layers."""

import dataclasses
from functools import partial
from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.training.models.gpt import GPTModelConfig

from moe_megatron.mcore.attention import CausalAttention
from moe_megatron.mcore.experts import LocalExperts
from moe_megatron.mcore.norm import LocalNorm
from moe_megatron.mcore.router import MeasuredRouter


def layer_spec(model_config: GPTModelConfig, vp_stage: int | None = None) -> Any:
    """The spec of the decoder layers that one pipeline stage builds.

    Args:
        model_config: Megatron's model configuration.
        vp_stage: Virtual pipeline stage, if any.
    """
    transformer = model_config.transformer
    block = get_gpt_decoder_block_spec(
        transformer,
        use_transformer_engine=transformer.transformer_impl == "transformer_engine",
        normalization=transformer.normalization,
        qk_l2_norm=transformer.qk_l2_norm,
        vp_stage=vp_stage,
    )
    return adapt_block(block)


def adapt_block(block: TransformerBlockSubmodules) -> TransformerBlockSubmodules:
    """Put our router and local layers into a block spec of Megatron's; everything else stays."""
    return dataclasses.replace(
        block,
        layer_specs=[
            dataclasses.replace(layer, submodules=_adapt_layer(layer.submodules))
            for layer in block.layer_specs
        ],
        layer_norm=_local_norm(block.layer_norm),
    )


def _adapt_layer(submodules: Any) -> Any:
    attention = submodules.self_attention
    attention = dataclasses.replace(
        attention, submodules=_replace_attention(_replace_norms(attention.submodules))
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
