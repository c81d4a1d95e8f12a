"""The weights that a decoding step reads, and a dense model with as many parameters."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from moe_megatron.errors import ConfigError
from moe_megatron.inference.transformers_experts import experts_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Bytes of a model, as they are read."""

    always: int
    """What every token reads; of the embedding no more than the matrix of the output."""
    experts: int
    """All routed experts."""
    of_layer: int
    """Experts of a layer."""
    top_k: int

    def read(self, batch: int) -> float:
        """Bytes that a step reads, whose tokens choose independently.

        always + experts * (1 - (1 - K / E)^B): an expert is read if any of B tokens has it.
        """
        if not self.experts:
            return float(self.always)
        return self.always + self.experts * (1 - (1 - self.top_k / self.of_layer) ** batch)


def weights_of(model: "PreTrainedModel") -> Weights:
    """Bytes of a transformers model."""
    found = experts_of(model)
    experts = sum(it.nbytes for module in found.values() for it in module.parameters())
    total = sum(it.nbytes for it in model.parameters())
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    looked_up = 0 if tied else model.get_input_embeddings().weight.nbytes
    modules: list[Any] = list(found.values())
    return Weights(
        always=total - experts - looked_up,
        experts=experts,
        of_layer=modules[0].num_experts if modules else 0,
        top_k=model.config.num_experts_per_tok if modules else 0,
    )


def dense_twin(model: "PreTrainedModel") -> "PreTrainedModel":
    """A dense model of random weights, with as many parameters as a mixture has in all.

    Layers, width, heads and vocabulary are the mixture's; the feed-forward network has the rest.

    Raises:
        ConfigError: The model has no experts.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    found = experts_of(model)
    if not found:
        raise ConfigError(
            f"{type(model).__name__} has no experts, so there is no dense model of equal size to "
            "compare it with; give dense=False."
        )
    config = model.config
    common = {
        name: getattr(config, name)
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "tie_word_embeddings",
        )
    }
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def twin(width: int) -> "PreTrainedModel":
        shape = LlamaConfig(**common, head_dim=head_dim, intermediate_size=width)
        made: PreTrainedModel = AutoModelForCausalLM.from_config(
            shape, dtype=model.dtype, trust_remote_code=False
        )
        return made

    with torch.device("meta"):
        bare = twin(1)
    each = 3 * config.hidden_size * config.num_hidden_layers
    width = 1 + round((model.num_parameters() - bare.num_parameters()) / each)
    return twin(width).eval()
