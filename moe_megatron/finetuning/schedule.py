"""How long a fine-tuning takes, and what of its data is held out, where nobody has said.

Passes over the data become steps. A part of the data is held out if it can be, evaluated four
times, and judged by, so that the best checkpoint is what comes of it. It knows no model.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from moe_megatron.config import RunConfig, apply_overrides
from moe_megatron.data.instructions.packing import packed_rows
from moe_megatron.data.instructions.stored import StoredSamples, holds_instructions
from moe_megatron.data.instructions.suitable import rows_of_splits
from moe_megatron.data.source import ResolvedBlend, resolve_blend
from moe_megatron.data.split import check_splits, documents_of_splits
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.run.prepared_data import open_indexed_writer, open_instruction_writer

SPLIT = "95,5,0"
"""What is held out where a fine-tuning evaluates and nobody has said how much."""
_NOTHING = "100,0,0"
_EVALUATIONS = 4


def blend_of(config: RunConfig) -> ResolvedBlend:
    """The data of a run, prepared.

    Raises:
        DataError: A source cannot be read.
    """
    return resolve_blend(config.data, open_indexed_writer, open_samples=open_instruction_writer)


def with_epochs(config: RunConfig, epochs: float) -> RunConfig:
    """As many steps as so many passes over the training data take, all tasks together.

    Args:
        config: The run.
        epochs: Passes, above 0; may be a fraction.

    Raises:
        ConfigError: It is not above 0.
        DataError: The data cannot be read.
    """
    if not 0 < epochs < math.inf:
        raise ConfigError(f"--epochs ({epochs:g}) must be above 0, such as 1 or 0.5.")
    blend, length = blend_of(config), config.data.sequence_length
    share = config.data.split_shares if config.training.eval_interval else (1.0, 0.0, 0.0)
    rows = 0.0
    if holds_instructions(blend.prefixes):
        for prefix in blend.prefixes:
            stored = StoredSamples(prefix)
            trained = np.asarray(documents_of_splits(len(stored), share)[0], dtype=np.int64)
            rows += len(packed_rows(stored, length, trained).rows)
    else:
        rows = share[0] * sum(blend.tokens) / length
    steps = max(1, math.ceil(epochs * rows / config.training.global_batch_size))
    return apply_overrides(config, {"training.train_steps": steps})


def with_held_out(
    config: RunConfig, named: Callable[[str], bool], say: Callable[[str], None]
) -> RunConfig:
    """Hold out some of the data, evaluate it, and keep the best checkpoint, unless told otherwise.

    Args:
        config: The run, with the wishes of its user.
        named: Whether the user has set a field.
        say: Is told where nothing can be held out.

    Raises:
        DataError: The data cannot be read, or has too little for what the user asks for.
    """
    training, off = config.training, config.training.eval_interval is None
    if off and named("training.eval_interval"):
        return config
    interval = training.eval_interval or math.ceil(training.train_steps / _EVALUATIONS)
    wanted: dict[str, Any] = {
        "training.eval_interval": interval,
        "data.split": SPLIT if config.data.split == _NOTHING else config.data.split,
        "evaluation.best": config.evaluation.best or "loss",
    }
    if not named("checkpoint.save_interval"):
        wanted["checkpoint.save_interval"] = interval
    if not any(map(named, ("checkpoint.keep_last", "checkpoint.keep_every"))):
        wanted["checkpoint.keep_last"] = 1
    held_out = apply_overrides(config, wanted)
    asked = not off or config.data.tasks is not None or config.evaluation.on
    try:
        _check(held_out)
    except DataError as error:
        if asked:
            raise
        say(f"nothing is held out: {error}")
        return config
    return held_out


def _check(config: RunConfig) -> None:
    """Refuse data of which nothing can be held out."""
    blend, shares = blend_of(config), config.data.split_shares
    for prefix in blend.prefixes:
        check_splits(prefix, shares)
    if holds_instructions(blend.prefixes):
        rows_of_splits(blend.prefixes, config.data.sequence_length, shares)
