"""The training, checkpoint and telemetry sections."""

import re
from typing import Any

import pytest

from moe_megatron.config import CheckpointConfig, TelemetryConfig, TrainingConfig
from moe_megatron.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_steps": 0}, "training.train_steps must be at least 1, not 0."),
        ({"eval_interval": 0}, "training.eval_interval must be at least 1, not 0."),
        ({"learning_rate": 0}, "training.learning_rate must be greater than 0, not 0.0."),
        ({"learning_rate": "fast"}, "training.learning_rate needs a number, not 'fast' (text)."),
        ({"adam_beta2": 1.0}, "training.adam_beta2 must be 0 or more and less than 1, not 1.0."),
        ({"precision": "fp16"}, "training.precision needs 'fp32', 'bf16', 'fp8' or 'auto', not"),
        ({"clip_grad": -1}, "training.clip_grad must be at least 0, not -1.0."),
        (
            {"min_learning_rate": 1.0},
            "training.min_learning_rate (1.0) must not exceed training.learning_rate (0.002).",
        ),
        (
            {"train_steps": 20},
            "training.warmup_steps (20) must be less than training.train_steps (20); "
            "shorten the warmup or train longer.",
        ),
        (
            {"micro_batch_size": 3},
            "training.global_batch_size (8) must be a multiple of training.micro_batch_size (3).",
        ),
    ],
)
def test_training_wrong_value_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        TrainingConfig(**fields)


def test_training_text_number_is_read() -> None:
    assert TrainingConfig(learning_rate="3e-3").learning_rate == 0.003  # type: ignore[arg-type]


def test_checkpoint_wrong_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"checkpoint\.save_interval must be at least 1, not 0"):
        CheckpointConfig(save_interval=0)
    with pytest.raises(ConfigError, match=r"checkpoint\.load must not be empty"):
        CheckpointConfig(load="")


def test_telemetry_wrong_value_is_refused() -> None:
    message = "telemetry.console_interval must be at least 1, not 0."
    with pytest.raises(ConfigError, match=re.escape(message)):
        TelemetryConfig(console_interval=0)
