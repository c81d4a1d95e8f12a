"""Rules that cross two sections, through `RunConfig.validate`."""

import re
from typing import Any

import pytest

from moe_megatron.config import RunConfig, apply_overrides
from moe_megatron.errors import ConfigError, TopologyError

YARN = {"kind": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
TWO_STAGES = {"parallel.pipeline_parallel_size": 2, "parallel.virtual_pipeline_stages": 2}


def changed(overrides: dict[str, Any]) -> RunConfig:
    return apply_overrides(RunConfig(), overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"moe.layer_frequency": [1, 0]},
            "moe.layer_frequency has 2 entries for model.num_layers (4); give one 1 or 0",
        ),
        (
            {"model.max_position_embeddings": 128},
            "data.sequence_length (256) must not exceed model.max_position_embeddings (128)",
        ),
        (
            {"data.split": "1,0,0"},
            "training.eval_interval (100) needs a validation share in data.split, which is '1,0,0'",
        ),
        (
            {"recovery.restart": "ft_launcher", "checkpoint.save_interval": None},
            "recovery.restart 'ft_launcher' needs checkpoints to go on from",
        ),
        (
            {"megatron.enable-ft-package": True},
            "--enable-ft-package cannot be given: recovery.restart: ft_launcher gives it",
        ),
        (
            {"megatron.inprocess-restart": True},
            "--inprocess-restart cannot be given: use recovery.restart: in_process",
        ),
        (
            {"megatron.calc-ft-timeouts": True},
            "--calc-ft-timeouts cannot be given: a short run would leave timeouts in ft_state.json",
        ),
        (
            {
                "recovery.expert_failure": "mask",
                "moe.num_experts": 4,
                "moe.load_balancing": "sinkhorn",
                "moe.aux_loss_coef": 0.0,
            },
            "recovery.expert_failure 'mask' does not work with moe.load_balancing 'sinkhorn'",
        ),
        (
            {
                "moe.num_experts": 3,
                "moe.load_balancing": "quantile_balancing",
                "moe.aux_loss_coef": 0.0,
                "training.micro_batch_size": 1,
                "data.sequence_length": 32,
            },
            "needs training.micro_batch_size (1) x data.sequence_length (32) x moe.top_k (2) to be "
            "a multiple of moe.num_experts (3)",
        ),
        (
            {"training.decay_style": "WSD"},
            "training.decay_style 'WSD' needs the length of its decay; set "
            "megatron.lr-wsd-decay-iters",
        ),
        (
            {"model.num_prediction_layers": 1, "model.rope_scaling": YARN},
            "model.num_prediction_layers (1) does not work with model.rope_scaling.kind 'yarn', "
            "for which Megatron has no multi-token prediction outside of latent attention; set "
            "num_prediction_layers to 0, or another kind of scaling.",
        ),
        (
            {
                "model.num_prediction_layers": 1,
                "model.position_embedding": "learned_absolute",
                "parallel.pipeline_parallel_size": 2,
            },
            "model.num_prediction_layers (1) with learned positions cannot be split by "
            "pipeline_parallel_size (2)",
        ),
        (
            {"model.num_prediction_layers": 2, "megatron.mtp-use-repeated-layer": True},
            "--mtp-use-repeated-layer runs one layer for all predictions, whose routing could not "
            "be told apart; leave it out, or set model.num_prediction_layers (2) to 0.",
        ),
        (
            {"model.num_prediction_layers": 2, "megatron.spec": ["my_layers", "spec"]},
            "--spec describes the decoder alone, and Megatron builds layers for multi-token "
            "prediction from a spec of its own; leave it out",
        ),
    ],
)
def test_validate_contradiction_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        changed(overrides).validate()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"parallel.expert_parallel_size": 3},
            "expert_parallel_size (3) must divide num_experts (8); try 1, 2, 4 or 8.",
        ),
        (
            {"parallel.pipeline_parallel_size": 3},
            "pipeline_parallel_size (3) must divide num_layers (4)",
        ),
        (
            {"parallel.tensor_parallel_size": 16},
            "tensor_parallel_size (16) must divide num_attention_heads (8); try 1, 2, 4 or 8.",
        ),
        (
            {
                "parallel.tensor_parallel_size": 3,
                "model.num_attention_heads": 12,
                "model.num_query_groups": 4,
                "model.head_dim": 32,
                "data.sequence_length": 240,
            },
            "num_query_groups (4) must be a multiple or a divisor of tensor_parallel_size (3); "
            "try tensor_parallel_size 1, 2 or 4.",
        ),
        (
            {
                "parallel.tensor_parallel_size": 2,
                "model.ffn_hidden_size": 99,
                "moe.layer_frequency": 2,
            },
            "tensor_parallel_size (2) must divide ffn_hidden_size (99); try 1, 3, 9, 11 or 33.",
        ),
        (
            {"parallel.expert_tensor_parallel_size": 2, "moe.expert_hidden_size": 33},
            "expert_tensor_parallel_size (2) must divide expert_hidden_size (33)",
        ),
        (
            {"parallel.tensor_parallel_size": 2, "moe.shared_expert_hidden_size": 33},
            "tensor_parallel_size (2) must divide shared_expert_hidden_size (33)",
        ),
        (
            {"parallel.context_parallel_size": 2, "data.sequence_length": 250},
            "data.sequence_length (250) must be a multiple of 2 x context_parallel_size (2); "
            "try 248 or 252.",
        ),
        (
            {"parallel.tensor_parallel_size": 4, "data.sequence_length": 250},
            "data.sequence_length (250) must be a multiple of context_parallel_size (1) x "
            "tensor_parallel_size (4) with sequence parallelism; try 248 or 252.",
        ),
        (
            {"parallel.tensor_parallel_size": 2, "parallel.sequence_parallel": False},
            "MoE layers with tensor_parallel_size (2) need sequence parallelism",
        ),
        (
            {"parallel.expert_tensor_parallel_size": 2, "model.add_bias": True},
            "experts with a bias cannot be split by expert_tensor_parallel_size (2); set it to 1",
        ),
    ],
)
def test_validate_sizes_that_do_not_divide_are_refused(
    overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(TopologyError, match=re.escape(message)):
        changed(overrides).validate()


@pytest.mark.parametrize(
    ("overrides", "world_size", "message"),
    [
        (
            {"parallel.expert_parallel_size": 2},
            3,
            "world size (3) is not divisible by expert_tensor_parallel_size (1)",
        ),
        (
            {},
            4,
            "global_batch_size (8) must be a multiple of micro_batch_size (4) x data parallel "
            "size (4); try global_batch_size 16, or micro_batch_size 1 or 2.",
        ),
        ({}, 3, "data parallel size (3); try global_batch_size 12."),
        (
            {**TWO_STAGES, "training.global_batch_size": 12},
            2,
            "virtual_pipeline_stages (2) need the number of micro-batches (3) to be a multiple of "
            "pipeline_parallel_size (2); try global_batch_size 8 or 16.",
        ),
    ],
)
def test_validate_world_size_that_does_not_fit_is_refused(
    overrides: dict[str, Any], world_size: int, message: str
) -> None:
    config = changed(overrides)
    config.validate()
    with pytest.raises(TopologyError, match=re.escape(message)):
        config.validate(world_size)


@pytest.mark.parametrize(
    ("overrides", "world_size"),
    [
        ({}, 1),
        ({}, 2),
        ({"moe.num_experts": None}, 2),
        ({"moe.num_experts": None, "parallel.tensor_parallel_size": 2}, 2),
        # Without sequence parallelism only MoE layers are in the way.
        (
            {
                "moe.num_experts": None,
                "parallel.tensor_parallel_size": 2,
                "parallel.sequence_parallel": False,
            },
            2,
        ),
        # One key/value head copied to both processes.
        ({"model.num_query_groups": 1, "parallel.tensor_parallel_size": 2}, 2),
        # No dense layer, so its width does not matter.
        (
            {
                "model.ffn_hidden_size": 99,
                "moe.expert_hidden_size": 64,
                "parallel.tensor_parallel_size": 2,
            },
            2,
        ),
        # Layers dealt out unevenly by Megatron's own flag.
        (
            {
                "model.num_layers": 5,
                "parallel.pipeline_parallel_size": 2,
                "megatron.decoder-first-pipeline-num-layers": 2,
            },
            2,
        ),
        (TWO_STAGES, 2),
        ({"data.split": "1,0,0", "training.eval_interval": None}, 1),
        ({"training.decay_style": "WSD", "megatron.lr_wsd_decay_iters": 10}, 1),
    ],
)
def test_validate_fitting_configuration_is_accepted(
    overrides: dict[str, Any], world_size: int
) -> None:
    changed(overrides).validate(world_size)
