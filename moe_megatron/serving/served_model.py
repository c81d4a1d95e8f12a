"""A model folder to what an engine needs: the model, its tokenizer, and what ends its texts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.checkpoint.hub import local_folder
from moe_megatron.config.checkpoint_files import is_megatron_checkpoint
from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.inference.expert_cache import ExpertCache
from moe_megatron.inference.optimized_model import OptimizedMoEModel
from moe_megatron.text.loading import load_tokenizer
from moe_megatron.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "sdpa"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that can be served.

    Attributes:
        path: Its folder.
        model: With the attention that batches need.
        tokenizer: Of the folder.
        ends: Tokens that end a text.
        context: Tokens that the model was made for.
        close: Gives files and memory back.
    """

    path: Path
    model: "PreTrainedModel"
    tokenizer: Tokenizer
    ends: frozenset[int]
    context: int
    close: Callable[[], None]


def load(source: str | Path, cache: ExpertCache | None = None) -> Loaded:
    """Load a model.

    Args:
        source: A Hugging Face folder, or a hub id.
        cache: Memory for some of its experts; None for all of them.

    Raises:
        CheckpointError: It is incomplete or damaged, or its experts cannot be read one by one.
        ConfigError: The cache is too small.
        DataError: There is no tokenizer.
        MappingError: Its family is unknown and a cache was asked for.
    """
    path = local_folder(source)
    if is_megatron_checkpoint(path):
        raise CheckpointError(
            f"{path} is a Megatron checkpoint, and Hugging Face folders are served; run "
            f"`moe-megatron convert {path} NEW_FOLDER` and serve that folder."
        )
    folder = HfFolder(path)
    tokenizer = load_tokenizer(str(path))
    if cache is None:
        model, close = _whole(path), _nothing
    else:
        some = OptimizedMoEModel.from_pretrained(path)
        some.set_expert_cache(cache)
        model, close = some.model, some.close
        model.set_attn_implementation(ATTENTION)
    ends = {tokenizer.eod_id, *_numbers(model.generation_config.eos_token_id)}
    context = folder.config.get("max_position_embeddings")
    if not isinstance(context, int) or context < 2:
        raise ConfigError(
            f"{path}/config.json does not say how many tokens the model was made for "
            "(max_position_embeddings); write it there."
        )
    return Loaded(path, model, tokenizer, frozenset(ends), context, close)


def _whole(path: Path) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        path,
        dtype="auto",
        attn_implementation=ATTENTION,
        trust_remote_code=False,
        local_files_only=True,
    ).eval()
    for parameter in model.parameters():  # not of a map: a file that is cut short would kill us
        parameter.data = parameter.data.clone()
    return model


def _numbers(given: Any) -> list[int]:
    if given is None:
        return []
    return list(given) if isinstance(given, list) else [given]


def _nothing() -> None:
    return None
