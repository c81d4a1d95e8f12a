"""`moe-megatron finetune`: tune a published model on texts, and get one back."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_megatron.cli.launching import launcher, say
from moe_megatron.cli.output import lasting_output
from moe_megatron.cli.pretrain import option_parser, read_options
from moe_megatron.cli.words import read_words
from moe_megatron.config import RunConfig, apply_overrides
from moe_megatron.config.data import TEXT
from moe_megatron.config.fields import float_or_text
from moe_megatron.config.finetune import RATES
from moe_megatron.config.preferences import PREFERENCES
from moe_megatron.data.instructions.format_registry import AUTOMATIC
from moe_megatron.errors import ConfigError
from moe_megatron.files import user_path

if TYPE_CHECKING:
    from moe_megatron.telemetry.values.profile import RoutingProfile

_SEQUENCES = 128
"""Sequences of each source that are read to see which experts it uses."""

_DESCRIPTION = """\
Tune a model: a Hugging Face folder, a hub id or a Megatron checkpoint. The output holds the run,
with its Megatron checkpoints, and the tuned model as a Hugging Face folder (OUTPUT/hf). Options of
`moe-megatron train` and every Megatron flag are accepted in addition to those below."""

_EPILOG = """\
examples:
  moe-megatron finetune allenai/OLMoE-1B-7B-0924 my_texts.jsonl --output tuned --train-iters 200
  moe-megatron finetune my_model my_texts.jsonl --output tuned --train experts --lr 1e-5
  moe-megatron finetune my_model my_texts.jsonl --output tuned --used-experts --share 0.3
  moe-megatron finetune my_model pairs.jsonl --output tuned --task preferences --beta 0.1
  moe-megatron finetune my_model my_texts.jsonl --output tuned --freeze experts \\
      --router-learning-rate 0.1x"""


def run(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: What follows `moe-megatron finetune`.

    Returns:
        The exit code.

    Raises:
        MoEError: The model, the data or an option does not allow it.
    """
    parser = option_parser(prog="moe-megatron finetune")
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    _add_options(parser)
    ours, flags = read_words(parser, argv)
    if ours.config is not None or ours.run_dir is not None:
        raise ConfigError(
            "the model says its own configuration, and --output where to write; change fields "
            "with --set, as in --set training.seed=2, and leave out --config and --run-dir."
        )
    for flag in ("--load", "--finetune"):
        if any(it.partition("=")[0] == flag for it in flags):
            raise ConfigError(f"{flag} is what this command does by itself; leave it out.")
    from moe_megatron.finetuning import published  # loads what --help can do without
    from moe_megatron.finetuning.unfreezing import UnfreezeAt

    output: Path = ours.output
    with lasting_output(), published.output_folder(ours.source, output):
        base = published.base_of(ours.source, output)
        config = published.tuning_config(base)
        config = _with_used_experts(_with_options(config, ours, flags), base, ours)
        unfreeze = [UnfreezeAt.read(text) for text in ours.unfreeze]
        return published.finetune(
            config, base, output, launcher(ours), unfreeze=unfreeze, say=say
        ).code


def _add_options(parser: Any) -> None:
    add = parser.add_argument
    add("source", metavar="SOURCE", help="Hugging Face folder, hub id, or Megatron checkpoint")
    add("data", nargs="+", metavar="DATA", help="what to train on, as `train --data-path` takes it")
    add("--output", type=user_path, required=True, metavar="DIR", help="folder to write")
    add(
        "--task",
        choices=("text_generation", "instructions", PREFERENCES),
        help="what to learn: all of a text, the answers of conversations, or which of two answers "
        "is preferred (DPO); default: by data.format",
    )
    add("--beta", type=float, help="for preferences: how close to stay to SOURCE (default: 0.1)")
    add("--num-processes", type=int, help="processes to start on this machine")
    add = parser.add_argument_group("what is trained").add_argument
    words = {"action": "extend", "nargs": "+", "default": [], "metavar": "SELECTOR"}
    add("--train", help="such as router or experts@2-4:0,3; all else is frozen", **words)
    add("--freeze", help="what is frozen although --train names it", **words)
    add(
        "--unfreeze",
        action="append",
        default=[],
        metavar="STEP:SELECTOR",
        help="after this step, train this, too (repeatable)",
    )
    add(
        "--used-experts",
        action="store_true",
        help="train the experts that the task uses, counted on the data first (ESFT)",
    )
    add(
        "--experts-by-profile",
        type=user_path,
        metavar="FILE",
        help="as --used-experts, by the routing_profile.json of an earlier run over the task",
    )
    add("--share", type=float, default=0.2, help="their share of the task's tokens (default: 0.2)")
    for role, field in RATES.items():
        flag = f"--{field.replace('_', '-')}"
        add(flag, metavar="RATE", help=f"of {role}: a number, or a multiple such as 0.1x")


def _with_options(config: RunConfig, ours: Namespace, flags: Sequence[str]) -> RunConfig:
    """The configuration with the options and flags of the command line."""
    given: dict[str, Any] = {"data.paths": ours.data}
    if ours.task is not None:
        formats = {"text_generation": TEXT, "instructions": AUTOMATIC, PREFERENCES: PREFERENCES}
        given["data.format"] = formats[ours.task]
    if ours.beta is not None:
        if ours.task != PREFERENCES:
            raise ConfigError(f"--beta ({ours.beta:g}) needs --task {PREFERENCES}; leave it out.")
        given["preferences.beta"] = ours.beta
    if ours.train:
        given["finetune.train"] = ours.train
    if ours.freeze:
        given["finetune.freeze"] = ours.freeze
    for field in RATES.values():
        if (rate := getattr(ours, field)) is not None:
            given[f"finetune.{field}"] = float_or_text((rate,))
    return read_options(ours, flags, base=config, given=given).config


def _with_used_experts(config: RunConfig, base: Path, ours: Namespace) -> RunConfig:
    """The configuration with the experts that the task uses in place of all, said with shares."""
    if ours.experts_by_profile is None and not ours.used_experts:
        return config
    from moe_megatron.finetuning.used_experts import train_used, used_experts
    from moe_megatron.telemetry.values.profile import RoutingProfile

    if ours.experts_by_profile is not None:
        profile = RoutingProfile.load(ours.experts_by_profile)
    else:
        profile = _counted(config, base)
    chosen = used_experts(profile, ours.share)
    for it in chosen:
        say(str(it))
    if config.adapter.on:
        from moe_megatron.finetuning.adapter_choice import used_targets

        return apply_overrides(config, {"adapter.targets": used_targets(config, chosen)})
    return apply_overrides(config, {"finetune.train": train_used(config.finetune.train, chosen)})


def _counted(config: RunConfig, base: Path) -> "RoutingProfile":
    """Routing of the first sequences of the data, by the model that is to be tuned."""
    from moe_megatron.finetuning.task_profile import task_profile
    from moe_megatron.models import MoEModel
    from moe_megatron.training.texts import tokenizer_for

    model = MoEModel.from_pretrained(base)
    tokenizer = tokenizer_for(config.data.tokenizer, model.vocab_size)
    profiles = [
        task_profile(
            model,
            tokenizer,
            path,
            config.data.format,
            length=config.data.sequence_length,
            sequences=_SEQUENCES,
        )
        for path in config.data.paths
    ]
    for other in profiles[1:]:
        profiles[0].merge(other)
    return profiles[0]
