"""Which family a natively trained model can be exported as.

A family fits when the configuration it would write, read again, is the same model, computed in the
same way. So the tables decide, and a new family needs no rule here.
"""

from collections.abc import Iterable
from typing import Any

from moe_megatron.config import RunConfig
from moe_megatron.config.mapping import from_mapping
from moe_megatron.errors import ConfigError, MappingError
from moe_megatron.families.family import Family
from moe_megatron.families.settings import of_run

_MODEL = tuple(
    f"model.{name}"
    for name in (
        "num_layers hidden_size num_attention_heads num_query_groups head_dim position_embedding "
        "norm norm_epsilon qk_norm qk_norm_scope activation add_bias attention_output_bias "
        "lm_head_bias embedding_multiplier attention_multiplier residual_multiplier "
        "logits_divisor tie_embeddings"
    ).split()
)
_MOE = tuple(
    f"moe.{name}"
    for name in (
        "num_experts top_k expert_hidden_size shared_expert_hidden_size router_algorithm "
        "sparse_mixer_jitter router_score_function "
        "pre_softmax expert_bias num_groups group_top_k top_k_scaling"
    ).split()
)
_FLAGS = tuple(
    f"megatron.{name}"
    for name in (
        "add-qkv-bias moe-shared-expert-gate multi-latent-attention mtp-num-layers rotary-percent "
        "window-size softmax-type quick-geglu moe-latent-size apply-layernorm-1p"
    ).split()
)


def fitting_family(run_config: RunConfig, families: Iterable[Family]) -> Family:
    """The first family that holds the model of a run.

    Args:
        run_config: A run that was not imported.
        families: Families in order of preference.

    Raises:
        MappingError: None does; names the nearest and what it cannot say.
    """
    misfits: list[tuple[int, str]] = []
    for family in families:
        weight, problem = _misfit(run_config, family)
        if not weight:
            return family
        misfits.append((weight, f"the nearest is {family.name}: {problem}"))
    nearest = min(misfits, key=lambda misfit: misfit[0])[1]
    raise MappingError(
        f"no Hugging Face family holds this model; {nearest.removesuffix('.')}. Train with "
        "settings that a family has, or keep the Megatron checkpoint."
    )


def _misfit(run_config: RunConfig, family: Family) -> tuple[int, str]:
    """How far a family is from a run's model (0: it holds it), and what it cannot say."""
    if family.is_moe != (run_config.moe.num_experts is not None):
        return 100, f"it is {'a MoE' if family.is_moe else 'a dense'} family"
    try:
        hf_config = family.hf_config(run_config)
        there = from_mapping(family.run_config(hf_config))
        limits = family.limits(hf_config)
    except (MappingError, ConfigError) as error:
        return 99, str(error)
    pairs = ((name, of_run(run_config, name), of_run(there, name)) for name in _names(run_config))
    found = [*limits] + [
        f"{name} would be {_show(new)}, not {_show(old)}" for name, old, new in pairs if old != new
    ]
    return len(found), "; ".join(found)


def _names(run: RunConfig) -> tuple[str, ...]:
    dense_layers = len(run.moe_layers) < run.model.num_layers
    rope = run.model.position_embedding == "rope"
    return (
        *_MODEL,
        *(("model.ffn_hidden_size",) if dense_layers else ()),
        *(("model.rotary_base",) if rope else ()),
        *(() if run.moe.num_experts is None else _MOE),
        *_FLAGS,
    )


def _show(value: Any) -> str:
    return "none" if value is None else str(value)
