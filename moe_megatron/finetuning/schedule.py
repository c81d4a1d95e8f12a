"""How long a fine-tuning takes, and what of its data is held out, where nobody has said.

Passes over the data become steps. A part of the data is held out if it can be, evaluated four
times, and judged by, so that the best checkpoint is what comes of it. It knows no model.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_megatron.config import RunConfig, apply_overrides
from moe_megatron.data.instructions.packing import packed_rows
from moe_megatron.data.instructions.stored import holds_instructions, holds_pairs, opened
from moe_megatron.data.instructions.suitable import rows_of_splits
from moe_megatron.data.source import ResolvedBlend, resolve_blend
from moe_megatron.data.split import check_splits, documents_of_splits
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.run.prepared_data import open_indexed_writer, open_instruction_writer

SPLIT = "95,5,0"
"""What is held out where a fine-tuning evaluates and nobody has said how much."""
_NOTHING = "100,0,0"
_EVALUATIONS = 4


def with_schedule(
    config: RunConfig,
    named: Callable[[str], bool],
    say: Callable[[str], None],
    *,
    epochs: float | None = None,
    hold_out: bool = True,
) -> RunConfig:
    """Steps for so many passes, and a part of the data held out, unless its user says otherwise.

    The data is looked up once, and only where it must be. Of pairs of answers nothing is held out:
    they are judged otherwise.

    Args:
        config: The run, with the wishes of its user.
        named: Whether the user has set a field.
        say: Is told where nothing can be held out.
        epochs: Passes over the training data, all tasks together, above 0; may be a fraction.
            None: as many steps as the run has.
        hold_out: Whether a part is held out, evaluated, and the best checkpoint kept.

    Raises:
        ConfigError: `epochs` is not above 0.
        DataError: The data cannot be read, or has too little for what the user asks for.
    """
    if epochs is not None and not 0 < epochs < math.inf:
        raise ConfigError(f"--epochs ({epochs:g}) must be above 0, such as 1 or 0.5.")
    never = config.training.eval_interval is None and named("training.eval_interval")
    hold_out = hold_out and not never
    if epochs is None and not hold_out:
        return config
    blend = resolve_blend(config.data, open_indexed_writer, open_samples=open_instruction_writer)
    if epochs is not None:
        config = _with_epochs(config, blend, epochs)
    if hold_out and not (holds_instructions(blend.prefixes) and holds_pairs(blend.prefixes)):
        config = _with_held_out(config, blend.prefixes, named, say)
    return config


def _with_epochs(config: RunConfig, blend: ResolvedBlend, epochs: float) -> RunConfig:
    """As many steps as so many passes over the training data take."""
    length = config.data.sequence_length
    share = config.data.split_shares if config.training.eval_interval else (1.0, 0.0, 0.0)
    rows = 0.0
    if holds_instructions(blend.prefixes):
        for prefix in blend.prefixes:
            stored = opened(prefix)
            trained = np.asarray(documents_of_splits(len(stored), share)[0], dtype=np.int64)
            rows += len(packed_rows(stored, length, trained).rows)
    else:
        rows = share[0] * sum(blend.tokens) / length
    steps = max(1, math.ceil(epochs * rows / config.training.global_batch_size))
    return apply_overrides(config, {"training.train_steps": steps})


def _with_held_out(
    config: RunConfig,
    prefixes: Sequence[Path],
    named: Callable[[str], bool],
    say: Callable[[str], None],
) -> RunConfig:
    """Hold out some of the data, evaluate it, and keep the best checkpoint."""
    training, off = config.training, config.training.eval_interval is None
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
        _check(held_out, prefixes)
    except DataError as error:
        if asked:
            raise
        say(f"nothing is held out: {error}")
        return config
    return held_out


def _check(config: RunConfig, prefixes: Sequence[Path]) -> None:
    """Refuse data of which nothing can be held out."""
    for prefix in prefixes:
        check_splits(prefix, config.data.split_shares)
    if holds_instructions(prefixes):
        rows_of_splits(prefixes, config.data.sequence_length, config.data.split_shares)
