"""Checks a resume before a process starts: its checkpoint, its changes, and what is left to do.

It opens the configuration beside the checkpoint, and no tensor: a checkpoint with files that are
missing or truncated is passed over, but damage within a file is left for the ranks to find.
"""

from dataclasses import replace
from pathlib import Path

from moe_megatron.checkpoint.integrity.check import looks_whole
from moe_megatron.checkpoint.integrity.newest_valid import candidates
from moe_megatron.config import RunConfig
from moe_megatron.config.checkpoint_files import step_of
from moe_megatron.config.loading import check_same_run, no_checkpoint, saved_config
from moe_megatron.experts import resolve
from moe_megatron.families.untrained import check_trains

_OTHER_LENGTH = ("ckpt-step", "train-samples", "finetune")
"""Megatron flags with which the newest step does not say how much is left."""


def check_load(config: RunConfig) -> str | None:
    """Check the checkpoint that a run loads, if it loads one.

    Returns:
        None, or a line that says that the run has ended and there is nothing left to do.

    Raises:
        CheckpointError: There is none, or it does not belong to this run.
    """
    if config.checkpoint.load is None:
        return None
    checkpoints = Path(config.checkpoint.load)
    found = candidates(checkpoints)
    if not found:
        raise no_checkpoint(checkpoints)
    usable = found if config.checkpoint.fallback else found[:1]
    whole = next(filter(looks_whole, usable), None)
    folder = whole or found[0]
    check_trains(folder)
    check_same_run(folder, _with_its_vocabulary(config, folder), resolve)
    if whole is None:
        return None  # the ranks say what is wrong with it
    made, wanted = step_of(whole), config.training.train_steps
    if made is None or any(flag in config.megatron for flag in _OTHER_LENGTH):
        return None
    if made < wanted:
        return None
    return (
        f"nothing to do: {folder} is the end of a run of {wanted} steps. To train on, give a "
        f"larger number, such as --train-iters {2 * made}."
    )


def _with_its_vocabulary(config: RunConfig, folder: Path) -> RunConfig:
    """The run with the vocabulary of the model that it loads, as every run has in the end.

    Only the demo tokenizer is made in the size that a configuration asks for.
    """
    saved = saved_config(folder)
    if not saved or config.data.tokenizer == "demo":
        return config
    return replace(config, data=replace(config.data, vocab_size=saved.data.vocab_size))
