"""Operations that a drawn architecture tells are those that Megatron counts for its speed."""

from dataclasses import replace

import pytest
from megatron.training import training

from moe_megatron.config import load_config
from moe_megatron.mcore.loop.arguments import megatron_argv, parse
from moe_megatron.viz.architecture_parts import part_weights, shapes_of, total_weights
from tests.unit.mcore.loop.test_arguments import CPU, PATHS


@pytest.mark.parametrize(
    "preset", ["demo_moe", "olmoe_1b_7b", "deepseek_v3", "mixtral_tiny", "demo_dense"]
)
def test_operations_are_those_of_megatron(preset):
    given, one_process = load_config(preset), load_config("test_tiny")
    shape = replace(given.model, num_prediction_layers=0)
    config = replace(one_process, model=shape, moe=given.moe, data=given.data)
    model = config.architecture
    try:
        args = parse(megatron_argv(config, CPU, PATHS))
        args.padded_vocab_size = model.vocab_size
        theirs = training.num_floating_point_operations(
            args, 1, seqlen_squared_sum_in_batch=0, total_real_tokens_in_batch=1
        )
    finally:
        training.destroy_global_state()
    weights = part_weights(model, shapes_of(model))
    uncounted = sum(it.multiplied for (_, part), it in weights.items() if part == "router")
    latent = model.model.latent_attention
    norms = model.model.num_layers * (latent.q_lora_rank + latent.kv_lora_rank) if latent else 0
    # Forward and twice as many backward; Megatron leaves out routers, and counts norms of latents.
    assert theirs == 3 * 2 * (total_weights(weights).multiplied - uncounted + norms)
