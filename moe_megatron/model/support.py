"""Which configurations the plain model can compute; the others are refused with a remedy.

It knows no tensors. What Megatron itself refuses is checked by the configuration.
"""

from moe_megatron.config import ModelConfig, MoEConfig
from moe_megatron.config.validation import check_layers
from moe_megatron.errors import ConfigError

LOSS_BALANCING = ("aux_loss", "seq_aux_loss", "global_aux_loss")
_BALANCING = (*LOSS_BALANCING, "none")


def check_supported(model: ModelConfig, moe: MoEConfig, vocab_size: int) -> None:
    """Refuse what `MoEModel` does not compute.

    Raises:
        ConfigError: Says which field, and which values work.
    """
    check_layers(model, moe)
    if type(vocab_size) is not int or vocab_size < 1:
        raise ConfigError(
            f"vocab_size must be a whole number from 1, not {vocab_size!r}; use that of your "
            "tokenizer."
        )
    if model.position_embedding == "learned_absolute" and model.max_position_embeddings is None:
        raise ConfigError(
            "model.position_embedding 'learned_absolute' needs model.max_position_embeddings, the "
            "number of positions to learn; set it, for example to your sequence length, or use "
            "'rope'."
        )
    if model.position_embedding == "yarn":
        raise ConfigError(
            "MoEModel does not compute model.position_embedding 'yarn', which Megatron does; train "
            "and verify such a model as a Megatron checkpoint."
        )
    if moe.num_experts is None:
        return
    if moe.load_balancing not in _BALANCING:
        raise ConfigError(
            f"MoEModel does not route with moe.load_balancing '{moe.load_balancing}', which needs "
            f"Megatron's training loop; use one of {', '.join(_BALANCING)}."
        )
    if model.add_bias and moe.shared_expert_hidden_size is not None:
        raise ConfigError(
            "model.add_bias does not work with a shared expert, which has no bias in Megatron; set "
            "model.add_bias to false or moe.shared_expert_hidden_size to null."
        )
