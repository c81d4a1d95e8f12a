"""Which fields a run may change when it resumes from a checkpoint, as data.

The fields of a model say it themselves (`changes`, `adjustable` of `fields.setting`): the weights
depend on them, or they do not. This table says it of all others, each with the reason. It compares
two configurations and opens no file.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from moe_megatron.config.fields import settings_of
from moe_megatron.config.run import SECTIONS, RunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A field that a resumed run keeps as it was."""

    reason: str
    """Why, as the end of a sentence."""
    remedy: str
    """What to do instead."""
    applies: Callable[[RunConfig, RunConfig], bool] = lambda saved, wanted: True
    """Whether the change from the saved to the wanted configuration is one of those that matter."""
    of_other_runs: bool = False
    """Whether it is kept also by a run that goes on from a checkpoint of another run."""


def _loads_optimizer(saved: RunConfig, wanted: RunConfig) -> bool:
    return saved.checkpoint.save_optimizer and "no-load-optim" not in wanted.megatron


_NEW_MODEL = "Leave it as it was, or train a new model with another --run-dir"
_NEW_RUN = "Start a new run from its weights instead, with --load, --finetune and another --run-dir"
_NO_OPTIMIZER = "Give --no-load-optim to go on with a new optimizer"
_TOKENS = "the embeddings in the checkpoint belong to its tokens"
_KEEP_ORDER = Kept(
    reason="the checkpoint counts the sequences it has read in an order that would be another one",
    remedy=_NEW_RUN,
)
_KEEP_LAYOUT = Kept(
    reason="its optimizer was saved for these parallel sizes alone (checkpoint.fully_reshardable "
    "was false)",
    remedy=_NO_OPTIMIZER,
    applies=lambda saved, wanted: (
        not saved.checkpoint.fully_reshardable and _loads_optimizer(saved, wanted)
    ),
)


def _other_states(saved: RunConfig, wanted: RunConfig) -> bool:
    """Whether the optimizer of the one has states that the other cannot use."""
    same_form = saved.states_apart == wanted.states_apart
    return _loads_optimizer(saved, wanted) and not (same_form and wanted.finetune.reselect)


_KEEP_SELECTION = Kept(
    reason="its optimizer holds the state of those parameters that were trained then, and no other",
    remedy=f"Set finetune.reselect if some were frozen then and shall be trained now; "
    f"{_NO_OPTIMIZER[0].lower()}{_NO_OPTIMIZER[1:]}; or start a new run from the weights, with "
    "--finetune",
    applies=_other_states,
    of_other_runs=True,
)
_KEEP_FORM = Kept(
    reason="its optimizer was saved layer by layer and expert by expert, or is not",
    remedy=_NO_OPTIMIZER,
    applies=lambda saved, wanted: (
        saved.states_apart != wanted.states_apart and _loads_optimizer(saved, wanted)
    ),
    of_other_runs=True,
)
_KEEP_ADAPTERS = Kept(
    reason="its optimizer knows the parameters that were trained then, and no other",
    remedy=f"{_NO_OPTIMIZER}, or start a new run from the weights, with --finetune",
    applies=_loads_optimizer,
    of_other_runs=True,
)

ON_RESUME: Mapping[str, Kept | None] = {
    "model.max_position_embeddings": Kept(
        reason="every position has weights of its own",
        remedy=_NEW_MODEL,
        applies=lambda saved, wanted: (
            wanted.model.position_embedding == "learned_absolute"
            and saved.max_position_embeddings != wanted.max_position_embeddings
        ),
    ),
    "model.num_prediction_layers": Kept(
        reason="its optimizer knows those layers alone",
        remedy=_NO_OPTIMIZER,
        applies=_loads_optimizer,
    ),
    "data.paths": None,
    "data.weights": None,
    "data.tasks": Kept(
        reason="the checkpoint knows its tasks by their numbers",
        remedy="Give the same names in the same order, with new ones at their end; or start a new "
        "run from its weights, with --load, --finetune and another --run-dir",
        applies=lambda saved, wanted: (
            (wanted.data.tasks or ())[: len(saved.data.tasks or ())] != (saved.data.tasks or ())
        ),
    ),
    # `loading` accepts a tokenizer that has moved.
    "data.tokenizer": Kept(reason=_TOKENS, remedy=_NEW_RUN),
    "data.vocab_size": Kept(reason=_TOKENS, remedy=_NEW_RUN),
    "data.sequence_length": _KEEP_ORDER,
    "data.split": Kept(
        reason="texts that it has been trained on would become validation data", remedy=_NEW_RUN
    ),
    "data.text_key": None,
    "data.format": None,
    "data.max_bad_line_ratio": None,
    "data.num_workers": None,
    "data.cache_dir": None,
    "training.train_steps": None,
    "training.micro_batch_size": None,
    "training.global_batch_size": None,
    "training.learning_rate": None,
    "training.min_learning_rate": None,
    "training.warmup_steps": None,
    "training.decay_style": None,
    "training.weight_decay": None,
    "training.adam_beta1": None,
    "training.adam_beta2": None,
    "training.clip_grad": None,
    "training.seed": _KEEP_ORDER,
    "training.precision": None,
    "training.eval_interval": Kept(
        reason="with evaluation off, all texts are training data, and with it on, some are not",
        remedy=f"{_NEW_RUN}; or make evaluations rarer with a larger number",
        applies=lambda saved, wanted: (
            (saved.training.eval_interval is None) != (wanted.training.eval_interval is None)
        ),
    ),
    "training.eval_steps": None,
    "training.log_interval": None,
    "training.recompute": None,
    "training.deterministic": None,
    "parallel.tensor_parallel_size": _KEEP_LAYOUT,
    "parallel.pipeline_parallel_size": _KEEP_LAYOUT,
    "parallel.virtual_pipeline_stages": _KEEP_LAYOUT,
    "parallel.expert_parallel_size": _KEEP_LAYOUT,
    "parallel.expert_tensor_parallel_size": _KEEP_LAYOUT,
    "parallel.context_parallel_size": _KEEP_LAYOUT,
    "parallel.sequence_parallel": None,
    "parallel.distributed_optimizer": Kept(
        reason="the other optimizer cannot read what this one saved",
        remedy=_NO_OPTIMIZER,
        applies=_loads_optimizer,
    ),
    "checkpoint.save_interval": None,
    "checkpoint.load": None,
    "checkpoint.async_save": None,
    "checkpoint.fully_reshardable": None,
    "checkpoint.save_optimizer": None,
    "checkpoint.fallback": None,
    "checkpoint.keep_last": None,
    "checkpoint.keep_every": None,
    "checkpoint.keep_best": None,
    "checkpoint.patience_seconds": None,
    "telemetry": None,
    "recovery": None,
    "finetune.train": _KEEP_SELECTION,
    "finetune.freeze": _KEEP_SELECTION,
    "finetune.reselect": _KEEP_FORM,
    "finetune.router_learning_rate": None,
    "finetune.expert_learning_rate": None,
    "finetune.shared_expert_learning_rate": None,
    "finetune.attention_learning_rate": None,
    "finetune.mlp_learning_rate": None,
    "finetune.embedding_learning_rate": None,
    "finetune.output_learning_rate": None,
    "finetune.norm_learning_rate": None,
    # `loading` keeps all fields of adapters that a checkpoint has.
    "adapter.rank": _KEEP_ADAPTERS,
    "adapter.alpha": None,
    "adapter.scaling": None,
    "adapter.targets": None,
    "adapter.ranks": None,
    "adapter.experts": None,
    "adapter.magnitude": None,
    "adapter.dropout": None,
    "adapter.frozen_experts": None,
    "evaluation": None,
    "preferences": None,
    "run_dir": None,
    "preset": None,
    "megatron": None,
}
"""By the name of a field or of a whole section: why it is kept; None where it may change, and the
value of the configuration applies from the step after the checkpoint."""


@dataclass(frozen=True, slots=True)
class Change:
    """A field that was changed and must be kept."""

    name: str
    saved: Any
    wanted: Any
    kept: Kept

    def __str__(self) -> str:
        return (
            f"{self.name} is {self.saved} there and {self.wanted} here, but {self.kept.reason}. "
            f"{self.kept.remedy}."
        )


def refused_changes(saved: RunConfig, wanted: RunConfig) -> Iterator[Change]:
    """The changes to the training, from the saved to the wanted run, that cannot be resumed.

    What the models are is compared by `Architecture.differences`.
    """
    before, after = (flat(_with_effective_sizes(config)) for config in (saved, wanted))
    for name, kept in ON_RESUME.items():
        if kept is None or before[name] == after[name] or not kept.applies(saved, wanted):
            continue
        yield Change(name, before[name], after[name], kept)


def flat(config: RunConfig) -> dict[str, Any]:
    """Every field by its dotted name."""
    found: dict[str, Any] = {
        "run_dir": config.run_dir,
        "preset": config.preset,
        "megatron": config.megatron,
    }
    for section, kind in SECTIONS.items():
        for setting in settings_of(kind):
            found[".".join((section, *setting.path))] = setting.value(getattr(config, section))
    return found


def _with_effective_sizes(config: RunConfig) -> RunConfig:
    """The run with the sizes that a null stands for."""
    parallel = replace(
        config.parallel,
        expert_tensor_parallel_size=config.parallel.expert_tensor_size,
        virtual_pipeline_stages=config.parallel.stages_per_process,
    )
    return replace(config, parallel=parallel)


def may_change(name: str) -> bool:
    """Whether a field may change on resume, at least in some cases."""
    section, _, field = name.partition(".")
    kept = ON_RESUME.get(name, ON_RESUME.get(section))
    if name in ON_RESUME or section in ON_RESUME:
        return kept is None
    settings = {setting.path: setting for setting in settings_of(SECTIONS[section])}
    setting = settings[tuple(field.split("."))]
    return setting.changes == "training" or setting.adjustable
