"""Which models `MoEModel` can compute; others are refused with a remedy.

A field of the architecture that is not listed here is refused unless it has its default, so that a
new field cannot be ignored silently.
"""

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

from moe_megatron.config import Architecture, MoEConfig
from moe_megatron.config.architecture import default_of
from moe_megatron.config.checks import join_words
from moe_megatron.config.validation import check_layers
from moe_megatron.errors import ConfigError
from moe_megatron.routing import find_router

LOSS_BALANCING = ("aux_loss", "seq_aux_loss", "global_aux_loss")
_BALANCING = (*LOSS_BALANCING, "none")

COMPUTED = frozenset(
    (
        "model.num_layers model.hidden_size model.num_attention_heads model.num_query_groups "
        "model.head_dim model.ffn_hidden_size model.max_position_embeddings "
        "model.position_embedding model.rotary_base model.rotary_fraction model.norm "
        "model.norm_epsilon model.qk_norm model.qk_norm_scope model.qk_norm_after_rotation "
        "model.rotary_interleaved model.activation model.add_bias "
        "model.qkv_bias model.attention_output_bias model.lm_head_bias model.embedding_multiplier "
        "model.attention_multiplier model.residual_multiplier model.logits_divisor "
        "model.attention_sinks model.activation_clamp model.glu_offset "
        "model.sliding_window.size model.sliding_window.layers "
        "model.latent_attention.q_lora_rank model.latent_attention.kv_lora_rank "
        "model.latent_attention.qk_head_dim model.latent_attention.qk_pos_emb_head_dim "
        "model.latent_attention.v_head_dim model.latent_attention.norm_epsilon "
        "model.tie_embeddings moe.num_experts moe.top_k moe.expert_hidden_size "
        "moe.shared_expert_hidden_size moe.shared_expert_gate moe.layer_frequency moe.router "
        "moe.expert moe.expert_bias data.vocab_size"
    ).split()
)
"""Fields of the architecture that `MoEModel` implements, for all their values."""

_GROUPS = frozenset({"model.latent_attention", "model.sliding_window"})
"""Groups of which it implements the fields that `COMPUTED` names."""


def problems(architecture: Architecture) -> Iterator[str]:
    """Sentences that say what `MoEModel` does not implement of a model."""
    model, moe = architecture.model, architecture.moe
    names = list(architecture.field_names("tensors", "function"))
    for leaf in architecture.leaf_names("tensors", "function"):
        group = leaf.rpartition(".")[0]
        names += [leaf] if group in _GROUPS and leaf not in names else []
    beyond = [
        _shown(name, value)
        for name in names
        if name not in COMPUTED | _GROUPS
        and (value := architecture.value(name)) != default_of(name)
    ]
    if beyond:
        yield f"MoEModel does not compute {join_words(beyond, 'and')}."
    if not architecture.is_moe:
        return
    if moe.load_balancing not in _BALANCING:
        yield (
            f"MoEModel does not route with moe.load_balancing '{moe.load_balancing}', which needs "
            f"Megatron's training loop; use one of {', '.join(_BALANCING)}."
        )
    if model.add_bias and moe.shared_expert_hidden_size is not None:
        yield (
            "model.add_bias does not work with a shared expert, which has no bias in Megatron; set "
            "model.add_bias to false or moe.shared_expert_hidden_size to null."
        )


def _shown(name: str, value: Any) -> str:
    return name if is_dataclass(value) else f"{name} ({value})"


def check_supported(architecture: Architecture) -> None:
    """Refuse models that `MoEModel` cannot compute.

    Raises:
        ConfigError: It cannot; the message names the field and values that work.
    """
    model, vocab_size = architecture.model, architecture.vocab_size
    check_layers(model, architecture.moe)
    if type(vocab_size) is not int or vocab_size < 1:
        raise ConfigError(
            f"vocab_size must be a whole number of at least 1, not {vocab_size!r}; use that of "
            "your tokenizer."
        )
    if model.position_embedding == "learned_absolute" and model.max_position_embeddings is None:
        raise ConfigError(
            "model.position_embedding 'learned_absolute' needs model.max_position_embeddings, the "
            "number of positions to learn; set it, for example to your sequence length, or use "
            "'rope'."
        )
    for problem in problems(architecture):
        raise ConfigError(
            f"{problem} Megatron may: train and verify such a model as a Megatron checkpoint."
            if problem.startswith("MoEModel does not compute")
            else problem
        )


def check_continues(moe: MoEConfig) -> None:
    """Refuse to generate where a token's experts depend on tokens that come after it.

    Raises:
        ConfigError: They do, in evaluation.
    """
    if moe.num_experts is None:
        return
    why = remedy = ""
    if find_router(moe.router).looks_at_batch(training=False):
        why = f"the router '{moe.router.name}' chooses by all tokens that are computed together"
        remedy = "train with a router that does so in training alone"
    if moe.drops_by_weight:
        why = (
            f"with moe.capacity_factor ({moe.capacity_factor}) full experts drop the least "
            "probable tokens"
        )
        remedy = (
            "build or load the model without capacity_factor, which is a matter of training, or "
            "with drop_policy='position'"
        )
    if why:
        raise ConfigError(
            f"text cannot be continued as the model predicts it: {why}, so that a token's experts "
            f"depend on later ones, which are not there yet; {remedy}. Give "
            "allow_batch_dependent=True to generate nevertheless."
        )
