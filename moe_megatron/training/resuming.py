"""The run that `train(resume=True)` continues: which one it is, and how it goes on.

It compares configurations and opens no tensor.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_megatron.config import CONFIG_FILE, RunConfig, apply_overrides, load_config
from moe_megatron.errors import CheckpointError
from moe_megatron.run.changes import check_load
from moe_megatron.run.folder import continued, last_run_dir, last_saved_step


def resumed(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """The run as it continues the last one of its folder.

    Args:
        config: The run, whose folder is the name that all runs of the trainer begin with.
        overrides: The fields that a person has given, which win over those of the last run.

    Raises:
        CheckpointError: There is none, it saved no checkpoint, it has ended, or something changed
            that it must keep; the message says which.
    """
    wanted = Path(config.run_dir)
    folder = last_run_dir(wanted)
    if folder is None:
        raise CheckpointError(
            f"resume=True continues the last run of {wanted}, but there is none yet; leave resume "
            "out to start one, and keep it with overrides={'checkpoint.save_interval': 100}."
        )
    config = apply_overrides(config, {"run_dir": str(folder)})
    if last_saved_step(config) is None:
        raise CheckpointError(
            f"{folder} holds no checkpoint to resume from: MoETrainer saves none unless it is "
            "asked to. Leave resume out to go on from the weights that the model has, and give "
            "overrides={'checkpoint.save_interval': 100} for a run that can be continued."
        )
    file = folder / CONFIG_FILE
    if "checkpoint.save_interval" not in overrides and file.is_file():
        interval = load_config(file).checkpoint.save_interval
        config = apply_overrides(config, {"checkpoint.save_interval": interval})
    config = continued(config)
    if check_load(config) is not None:
        raise CheckpointError(
            f"{folder} has made all its {config.training.train_steps} steps, so there is nothing "
            "to resume. Give a larger num_epochs or max_steps, or leave resume out to start a new "
            "run from the weights that the model has."
        )
    return config
