"""`moe-megatron finetune`: tune a published model on texts, and get one back."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_megatron.cli.launching import launcher, say
from moe_megatron.cli.other_weights import add_other_weights, profile_given
from moe_megatron.cli.output import lasting_output
from moe_megatron.cli.pretrain import option_parser, read_options
from moe_megatron.cli.words import grouped_by_flag, read_words
from moe_megatron.config import RunConfig, apply_overrides, parse_override
from moe_megatron.config.checks import join_words
from moe_megatron.config.fields import float_or_text
from moe_megatron.config.finetune import RATES
from moe_megatron.config.flags import split_flags
from moe_megatron.config.preferences import PREFERENCES
from moe_megatron.errors import ConfigError
from moe_megatron.files import user_path
from moe_megatron.finetuning.named_tasks import KINDS, NamedTask, fields_of

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
  moe-megatron finetune my_model --task code=my_code.jsonl:0.3 prose=my_books.txt:0.7 \\
      --output tuned --epochs 2 --base-data what_it_knows.jsonl
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
    _add_options(parser, by_task=_names_tasks(argv))
    ours, flags = read_words(parser, argv)
    if ours.config is not None or ours.run_dir is not None:
        raise ConfigError(
            "the model says its own configuration, and --output where to write; change fields "
            "with --set, as in --set training.seed=2, and leave out --config and --run-dir."
        )
    for flag in ("--load", "--finetune"):
        if any(it.partition("=")[0] == flag for it in flags):
            raise ConfigError(f"{flag} is what this command does by itself; leave it out.")
    given = _given(ours)
    named = {*given, *split_flags(flags), *(parse_override(text)[0] for text in ours.set)}
    if ours.epochs is not None and "training.train_steps" in named:
        raise ConfigError("--epochs and --train-iters both say how long it takes; give one.")
    from moe_megatron.finetuning import published  # loads what --help can do without
    from moe_megatron.finetuning.adapter_choice import ADAPTER_RATE
    from moe_megatron.finetuning.schedule import with_schedule
    from moe_megatron.finetuning.unfreezing import UnfreezeAt

    output: Path = ours.output
    with lasting_output(), published.output_folder(ours.source, output):
        base = published.base_of(ours.source, output)
        begun = published.tuning_config(base)
        config = read_options(ours, flags, base=begun, given=given).config
        published.check_tokenizer(ours.source, begun.data.tokenizer, config)
        if config.adapter.on and "training.learning_rate" not in named:
            config = apply_overrides(config, {"training.learning_rate": ADAPTER_RATE})
        config = _with_used_experts(config, base, ours)
        config = with_schedule(
            config,
            named.__contains__,
            say,
            epochs=ours.epochs,
            hold_out=not ours.unfreeze,  # stages would judge by themselves alone
        )
        unfreeze = [UnfreezeAt.read(text) for text in ours.unfreeze]
        return published.finetune(
            config, base, output, launcher(ours), unfreeze=unfreeze, say=say
        ).code


def _names_tasks(argv: Sequence[str]) -> bool:
    """Whether the words give tasks in place of data."""
    groups = (group for group in grouped_by_flag(argv, ()) if group[0].startswith("--task"))
    words = [word.removeprefix("--task=") for group in groups for word in group]
    return any("=" in word for word in words)


def _add_options(parser: Any, *, by_task: bool) -> None:
    add = parser.add_argument
    add("source", metavar="SOURCE", help="Hugging Face folder, hub id, or Megatron checkpoint")
    if not by_task:
        data = "what to train on, as `train --data-path` takes it; or give --task"
        add("data", nargs="+", metavar="DATA", help=data)
    words = {"action": "extend", "nargs": "+", "default": []}
    task = (
        f"what to learn, {join_words(list(KINDS))}: all of a text, the answers of conversations, "
        "or which of two answers is preferred (DPO; default: by data.format); and in place of DATA "
        "tasks by name, their data and their shares of the mixture (repeatable)"
    )
    add("--task", metavar="KIND|NAME=DATA[:WEIGHT]", help=task, **words)
    base = "data of what the model knows already: evaluated, to see what is forgotten"
    add("--base-data", metavar="DATA", help=base, **words)
    add("--epochs", type=float, metavar="N", help="passes over the data, in place of --train-iters")
    add("--output", type=user_path, required=True, metavar="DIR", help="folder to write")
    add("--beta", type=float, help="for preferences: how close to stay to SOURCE (default: 0.1)")
    add("--num-processes", type=int, help="processes to start on this machine")
    group = parser.add_argument_group("what is trained")
    add = group.add_argument
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
    add_other_weights(group, "--experts-by-profile")
    add("--share", type=float, default=0.2, help="their share of the task's tokens (default: 0.2)")
    for role, field in RATES.items():
        flag = f"--{field.replace('_', '-')}"
        add(flag, metavar="RATE", help=f"of {role}: a number, or a multiple such as 0.1x")


def _given(ours: Namespace) -> dict[str, Any]:
    """The fields that options of this command set."""
    given: dict[str, Any] = {}
    kinds = [word for word in ours.task if word in KINDS]
    tasks = [NamedTask.read(word) for word in ours.task if word not in KINDS]
    if len(kinds) > 1 or (tasks and PREFERENCES in kinds):
        raise ConfigError(
            f"--task {' '.join(ours.task)} says more than one thing to learn; give one of "
            f"{join_words(list(KINDS))}, and for several tasks no preferences."
        )
    given |= fields_of(tasks) if tasks else {"data.paths": ours.data}
    if kinds:
        given["data.format"] = KINDS[kinds[0]]
    if ours.beta is not None:
        if PREFERENCES not in kinds:
            raise ConfigError(f"--beta ({ours.beta:g}) needs --task {PREFERENCES}; leave it out.")
        given["preferences.beta"] = ours.beta
    if ours.base_data:
        given["evaluation.base"] = ours.base_data
    if ours.train:
        given["finetune.train"] = ours.train
    if ours.freeze:
        given["finetune.freeze"] = ours.freeze
    for field in RATES.values():
        if (rate := getattr(ours, field)) is not None:
            given[f"finetune.{field}"] = float_or_text((rate,))
    return given


def _with_used_experts(config: RunConfig, base: Path, ours: Namespace) -> RunConfig:
    """The configuration with the experts that the task uses in place of all, said with shares."""
    if ours.experts_by_profile is None and not ours.used_experts:
        return config
    from moe_megatron.checkpoint.routers import routers_of
    from moe_megatron.finetuning.used_experts import train_used, used_experts
    from moe_megatron.telemetry.values.profile import RoutingProfile
    from moe_megatron.telemetry.values.router_digest import check_same_routers

    given = profile_given(ours, "--experts-by-profile")
    if given is not None:
        profile = given if isinstance(given, RoutingProfile) else RoutingProfile.load(given)
        check_same_routers(
            profile.routers, lambda: routers_of(base), str(ours.experts_by_profile), ours.source
        )
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
