"""Where a model sends the tokens of a task, counted in this process before it is tuned."""

import itertools

import torch

from moe_megatron.analytics.routers import RouterHooks
from moe_megatron.errors import ConfigError
from moe_megatron.model.evaluating import evaluating
from moe_megatron.model.moe_model import MoEModel
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.text.tokenizer import Tokenizer
from moe_megatron.training import texts as text_data
from moe_megatron.training.scoring import batches
from moe_megatron.training.texts import Texts


@torch.no_grad()
def task_profile(
    model: MoEModel,
    tokenizer: Tokenizer,
    dataset: Texts,
    data_format: str,
    *,
    length: int,
    sequences: int,
) -> RoutingProfile:
    """Count what the routers choose for the first sequences of a dataset.

    Args:
        model: Routes as in evaluation; it is not changed.
        tokenizer: The model's.
        dataset: As `MoETrainer.train` takes it.
        data_format: "text", or a format of conversations.
        length: Tokens of a sequence.
        sequences: Most sequences to read.

    Returns:
        A profile of which only the counts of tokens by expert are filled.

    Raises:
        ConfigError: The model has no experts.
        DataError: There is no text, or it cannot be read.
    """
    experts = model.moe_config.num_experts
    if experts is None:
        raise ConfigError("the model is dense: it has no experts to choose from.")
    prefix, _ = text_data.index_data(
        dataset, tokenizer, "text", data_format, "dataset", length=length
    )
    profile = RoutingProfile.empty(
        layers=model.architecture.moe_layers, num_experts=experts, top_k=model.moe_config.top_k
    )
    most = model.model_config.max_position_embeddings
    rows = batches(prefix, length, 1, most, pairs=True)
    with evaluating(model):
        for batch in itertools.islice(rows, sequences):
            routing = model(batch.input_ids, attention_mask=batch.valid).routing
            for row, info in enumerate(routing):
                profile.tokens_per_expert[row] += info.tokens_per_expert.cpu().numpy()
    profile.routers = RouterHooks(model).digests()
    return profile
