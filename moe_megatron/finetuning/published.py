"""Fine-tuning from a model's folder to a model's folder: import, run, export.

    OUTPUT/base     the source as a Megatron checkpoint, if it was a Hugging Face folder
    OUTPUT/stages   runs before the last one, if what is trained changes on the way
    OUTPUT/run      the run: metrics, report, checkpoints
    OUTPUT/hf       the tuned model as a Hugging Face folder, with tokenizer, chat template and
                    routing profile; adapters are merged into its weights
    OUTPUT/adapter  the adapter by itself in PEFT's format, if the run had one

Each step is what the command of its own does. It does not know how a run is launched.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_megatron.adapters.exported import export_adapter
from moe_megatron.adapters.merged_folder import merge_folder
from moe_megatron.checkpoint.convert import Execution, export_checkpoint, import_checkpoint
from moe_megatron.checkpoint.execute.publish import check_apart, check_free
from moe_megatron.checkpoint.formats.own_files import given_folder
from moe_megatron.checkpoint.hub import local_folder
from moe_megatron.checkpoint.integrity.newest_valid import candidates
from moe_megatron.config import CONFIG_FILE, DataConfig, RunConfig, apply_overrides
from moe_megatron.config.checkpoint_files import (
    CHECKPOINTS,
    HF_FOLDER,
    METADATA,
    TRACKER,
    checkpoints_of,
    is_megatron_checkpoint,
)
from moe_megatron.config.data import TEXT
from moe_megatron.config.loading import no_checkpoint, saved_config
from moe_megatron.data.source import DEMO
from moe_megatron.errors import CheckpointError, DataError, MappingError
from moe_megatron.finetuning.unfreezing import UnfreezeAt, train_and_unfreeze
from moe_megatron.run.best import best_checkpoint
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE
from moe_megatron.text.chat_template import chat_template_of
from moe_megatron.text.folder import has_tokenizer
from moe_megatron.text.loading import load_tokenizer

BASE, STAGES, RUN, HF, ADAPTER = "base", "stages", "run", "hf", "adapter"
"""Folders of the output."""

_LONGEST = 1024

DEFAULTS: Mapping[str, Any] = {
    "training.train_steps": 100,
    "training.learning_rate": 2e-5,
    "training.min_learning_rate": 0.0,
    "training.warmup_steps": 0,
    "training.weight_decay": 0.0,
    "training.eval_interval": None,
    "data.split": "100,0,0",
}
"""Where a fine-tuning differs from a training that begins with nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """What came of a fine-tuning."""

    code: int
    """Exit code of the run."""
    checkpoint: Path | None = None
    """Folder of the Megatron checkpoints; None if the run did not end in order."""
    hugging_face: Path | None = None
    """The tuned model as a Hugging Face folder."""


@contextmanager
def output_folder(source: str | Path, output: Path) -> Iterator[Path]:
    """The folder to write; it is removed again if no training comes of it.

    Raises:
        CheckpointError: It holds something already, or holds the source.
    """
    check_free(output)
    if given_folder(source).exists():
        check_apart(output, given_folder(source))
    was_there = output.is_dir()
    try:
        yield output
    finally:
        runs = [output / RUN, *(output / STAGES).glob("*")]
        if not any((run / METRICS_FILE).exists() for run in runs):
            for folder in (BASE, STAGES, RUN):
                shutil.rmtree(output / folder, ignore_errors=True)
            if not was_there and output.is_dir() and not any(output.iterdir()):
                output.rmdir()


def base_of(source: str | Path, output: Path) -> Path:
    """The folder of Megatron checkpoints to start from; a Hugging Face model is converted.

    Raises:
        CheckpointError: It is neither, or damaged.
        MappingError: Its family is unknown.
    """
    folder = local_folder(source)
    if is_megatron_checkpoint(folder):
        folder = checkpoints_of(folder)
        if not (folder / METADATA).is_file():
            return folder
        if candidates(folder.parent)[:1] != [folder]:
            raise CheckpointError(
                f"{folder} is not the newest checkpoint of {folder.parent}, which a run begins "
                f"with; copy it to a folder of its own, or name it in {TRACKER} there."
            )
        return folder.parent
    import_checkpoint(folder, output / BASE, execution=Execution(progress=False))
    return output / BASE


def tuning_config(base: Path) -> RunConfig:
    """The configuration of a fine-tuning of a checkpoint, before anybody's wishes.

    Args:
        base: Folder of Megatron checkpoints, of which the newest is tuned.

    Raises:
        CheckpointError: There is none, or no configuration beside it.
    """
    found = candidates(base)
    if not found:
        raise no_checkpoint(base)
    folder = found[0]
    saved = saved_config(folder)
    if saved is None:
        raise CheckpointError(
            f"{folder} has no {CONFIG_FILE}, so nothing says which model it is; give a checkpoint "
            "that moe-megatron has written, or the model's Hugging Face folder."
        )
    own = folder / HF_FOLDER
    limit = saved.model.max_position_embeddings or saved.data.sequence_length
    config = RunConfig(
        model=saved.model,
        moe=saved.moe,
        data=DataConfig(
            tokenizer=str(own.absolute()) if has_tokenizer(own) else saved.data.tokenizer,
            vocab_size=saved.data.vocab_size,
            sequence_length=min(limit, _LONGEST),
        ),
    )
    return apply_overrides(config, DEFAULTS)


def check_tokenizer(source: str | Path, own: str, config: RunConfig) -> None:
    """Refuse a tokenizer that does not suit the model or the data, by where somebody has it.

    The run reads a copy of the source's own, which is gone again when the run is refused.

    Args:
        source: The model, as it was given.
        own: The tokenizer of `tuning_config`.
        config: The run.

    Raises:
        DataError: It cannot be read, has more tokens than the model, or no chat template.
    """
    wanted, folder = config.data.tokenizer, local_folder(source)
    if wanted == DEMO:
        return
    tokenizer = load_tokenizer(folder if wanted == own and has_tokenizer(folder) else wanted)
    if tokenizer.vocab_size > config.data.vocab_size:
        raise DataError(
            f"the tokenizer in {tokenizer.directory} has {tokenizer.vocab_size} tokens, and the "
            f"embedding of the model {config.data.vocab_size} rows, so that some tokens have none; "
            "give the model's own tokenizer: put it into the model's folder, or name its folder "
            "with --set data.tokenizer=FOLDER."
        )
    if config.data.format != TEXT:
        chat_template_of(tokenizer)


def finetune(
    config: RunConfig,
    base: Path,
    output: Path,
    launch: Callable[[RunConfig], int],
    *,
    unfreeze: Sequence[UnfreezeAt] = (),
    say: Callable[[str], None] = print,
) -> Tuned:
    """Run, and export what came of it: the best checkpoint where `evaluation.best` says which.

    Args:
        config: What `tuning_config` gave, with everybody's wishes.
        base: Folder of Megatron checkpoints to start from.
        output: The folder to write.
        launch: Runs a configuration to its end, and returns an exit code.
        unfreeze: What is trained from later steps on.
        say: Called with a line for each folder that was written.

    Raises:
        MoEError: The run cannot start, or its result cannot be exported.
    """
    forced = {
        "run_dir": str(output / RUN),
        "checkpoint.load": str(base),
        "megatron.finetune": True,
    }
    config = apply_overrides(config, forced)
    if unfreeze:
        code = train_and_unfreeze(config, unfreeze, output / STAGES, launch, say=say)
    else:
        code = launch(config)
    checkpoints = output / RUN / CHECKPOINTS
    if code:
        return Tuned(code=code)
    say(f"Megatron checkpoint: {checkpoints}")
    best = None
    if config.evaluation.best is not None and not unfreeze:
        best = best_checkpoint(output / RUN, checkpoints, config.evaluation.metric)
    source = checkpoints if best is None else Path(best.checkpoint)
    if config.adapter.on:
        _export_adapter(source, output, say)
    else:
        export_checkpoint(source, output / HF, execution=Execution(progress=False))
    say(f"Hugging Face folder: {output / HF}")
    return Tuned(code=code, checkpoint=checkpoints, hugging_face=output / HF)


def _export_adapter(checkpoints: Path, output: Path, say: Callable[[str], None]) -> None:
    """Write the adapter of a run by itself, and merged into its base."""
    merge_folder(checkpoints, output / HF)
    try:
        export_adapter(checkpoints, output / ADAPTER)
        say(f"adapter in PEFT's format: {output / ADAPTER}")
    except MappingError as error:
        say(f"no adapter in PEFT's format: {error}")
