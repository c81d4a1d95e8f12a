"""The transformers model of what users give."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from moe_megatron.checkpoint.hub import local_folder
from moe_megatron.config.checkpoint_files import is_megatron_checkpoint
from moe_megatron.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def transformers_model(source: "PreTrainedModel | str | Path") -> "PreTrainedModel":
    """A model as it is, or of a Hugging Face folder or hub id, in its own type.

    Raises:
        CheckpointError: It is a Megatron checkpoint, or cannot be read.
        ConfigError: It is something else.
    """
    from transformers import AutoModelForCausalLM, PreTrainedModel

    if isinstance(source, PreTrainedModel):
        return source.eval()
    if not isinstance(source, str | Path):
        raise ConfigError(
            f"model ({type(source).__name__}) must be a transformers model or its folder; save a "
            "MoEModel with save_pretrained(folder, format='hugging_face') and give that folder."
        )
    path = local_folder(source)
    if is_megatron_checkpoint(path):
        raise CheckpointError(
            f"{path} is a Megatron checkpoint; run `moe-megatron convert {path} NEW_FOLDER` and "
            "give that folder."
        )
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path, dtype="auto", trust_remote_code=False, local_files_only=True
        ).eval()
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be loaded by transformers: {error}") from error
    return model


class Logits(nn.Module):
    """Of a model, from token ids [B, T] to logits [B, T, V]: what files are compiled of."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """Without keys and values."""
        logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


def choose_experts(model: Any, implementation: str) -> None:
    """Let transformers compute experts in another way; models without experts stay as they are."""
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation(implementation)
