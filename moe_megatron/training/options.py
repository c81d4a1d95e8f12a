"""The configuration of a training call: from its arguments, and from `overrides` for all else.

No field that a person gives is dropped: what an argument decides is refused in `overrides`, with
the name of that argument, and so is what only the command line does. Everything else wins over the
defaults here. It reads no data and starts nothing.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from moe_megatron.config import RunConfig, apply_overrides
from moe_megatron.config.architecture import VOCABULARY
from moe_megatron.config.arguments import real, whole
from moe_megatron.config.fields import settings_of
from moe_megatron.config.mapping import read_override
from moe_megatron.config.run import SECTIONS
from moe_megatron.errors import ConfigError
from moe_megatron.model.support import LOSS_BALANCING

_LARGEST_MICRO_BATCH = 8
_LONGEST_WARMUP = 100

_DATA = "train_dataset of train(...)"
_PREPARE = "`moe-megatron data prepare`, whose result train(...) takes as a path"
_LAUNCHER = "what starts the processes; use `moe-megatron train --set {}=...`"

SET_ELSEWHERE: Mapping[str, str] = {
    VOCABULARY: "vocab_size of MoEModel(...), whose embeddings have that many rows",
    "model.init_std": "init_std of MoEModel(...), which has drawn its weights",
    "data.paths": _DATA,
    "data.weights": _DATA,
    "data.tasks": _DATA,
    "data.tokenizer": "tokenizer of MoETrainer(...)",
    "data.text_key": "text_key of train(...)",
    "data.format": "data_format of train(...)",
    "data.split": "eval_dataset of train(...), which is held out",
    "data.sequence_length": "sequence_length of train(...)",
    "data.max_bad_line_ratio": _PREPARE,
    "data.cache_dir": "the environment variable MOE_MEGATRON_CACHE",
    "evaluation.base": "base_dataset of FineTuner.train(...)",
    "training.train_steps": "num_epochs and max_steps of train(...)",
    "training.global_batch_size": "batch_size and gradient_accumulation_steps of train(...)",
    "training.learning_rate": "learning_rate of train(...)",
    "recovery.max_restarts": _LAUNCHER,
    "recovery.restart": _LAUNCHER,
    "recovery.setup_seconds": _LAUNCHER,
    "telemetry.log_format": _LAUNCHER,
}
"""Fields that `overrides` cannot set, with what sets them; those that give the model its shape come
on top."""

_RENAMED = {"top_k": "experts_per_token"}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOptions:
    """The arguments of `MoETrainer.train` that decide the schedule; None leaves a default.

    Raises:
        ConfigError: A value has the wrong type or is out of range.
    """

    batch_size: int
    learning_rate: float
    num_epochs: float
    max_steps: int | None
    sequence_length: int
    gradient_accumulation_steps: int
    warmup_steps: int | None
    weight_decay: float | None
    eval_interval: int | None
    expert_dropout: float | None
    load_balancing_loss_coef: float | None
    router_z_loss_coef: float | None

    def __post_init__(self) -> None:
        for name in ("batch_size", "gradient_accumulation_steps", "sequence_length"):
            self._keep(name, whole(name, getattr(self, name)))
        for name in ("max_steps", "eval_interval"):
            if (value := getattr(self, name)) is not None:
                self._keep(name, whole(name, value))
        if self.warmup_steps is not None:
            self._keep("warmup_steps", whole("warmup_steps", self.warmup_steps, least=0))
        examples = {"learning_rate": 1e-3, "num_epochs": 1}
        for name, example in examples.items():
            self._keep(name, real(name, getattr(self, name), example=example, above=True))
        examples = {
            "weight_decay": 0.1,
            "expert_dropout": 0.1,
            "load_balancing_loss_coef": 0.02,
            "router_z_loss_coef": 0.001,
        }
        for name, example in examples.items():
            if (value := getattr(self, name)) is not None:
                self._keep(name, real(name, value, example=example))

    def _keep(self, name: str, value: float) -> None:
        object.__setattr__(self, name, value)

    @property
    def sequences(self) -> int:
        """Sequences of one update, over all processes."""
        return self.batch_size * self.gradient_accumulation_steps

    def steps(self, tokens: int) -> int:
        """Updates that the wanted passes over so many tokens take, up to `max_steps`."""
        steps = math.ceil(tokens / self.sequence_length * self.num_epochs / self.sequences)
        return min(max(1, steps), self.max_steps or steps + 1)

    def cautions(self, tokens: int, *, epochs_given: bool) -> Iterator[str]:
        """What a person may not have meant, of a training on so many tokens."""
        length, sequences = self.sequence_length, tokens // self.sequence_length
        if tokens < length:
            yield (
                f"the text has {tokens:,} tokens, fewer than one sequence ({length:,}), so a "
                "sequence repeats it; give more text or a smaller sequence_length."
            )
        elif sequences < self.sequences:
            yield (
                f"a step takes {self.sequences:,} sequences and the text has only {sequences:,} of "
                f"{length:,} tokens, so a step repeats them; give more text, or a smaller "
                "batch_size or sequence_length."
            )
        wanted = replace(self, max_steps=None).steps(tokens)
        if epochs_given and self.max_steps is not None and self.max_steps < wanted:
            yield (
                f"max_steps ({self.max_steps:,}) ends the training before num_epochs "
                f"({self.num_epochs:g}) are over, which take {wanted:,} steps; leave one of them "
                "out."
            )
        if not epochs_given and self.max_steps is not None and wanted < self.max_steps:
            yield (
                f"one pass over the text takes {wanted:,} steps, fewer than max_steps "
                f"({self.max_steps:,}), and ends the training; give num_epochs for more passes."
            )

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that arguments set which may also be left out, by dotted name."""
        values = {
            "training.warmup_steps": self.warmup_steps,
            "training.weight_decay": self.weight_decay,
            "training.eval_interval": self.eval_interval,
            "moe.expert_dropout": self.expert_dropout,
            "moe.aux_loss_coef": self.load_balancing_loss_coef,
            "moe.z_loss_coef": self.router_z_loss_coef,
        }
        return {name: value for name, value in values.items() if value is not None}

    def name_of(self, field: str) -> str:
        """The argument that sets one of `fields`."""
        names = {"aux_loss_coef": "load_balancing_loss_coef", "z_loss_coef": "router_z_loss_coef"}
        own = field.rpartition(".")[2]
        return names.get(own, own)


def check_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides by dotted name, if they can be set here.

    Raises:
        ConfigError: An unknown field, a value of the wrong type, or a field that something else
            sets; the message names the argument.
    """
    if not isinstance(overrides, Mapping):
        raise ConfigError(
            f"overrides must be a mapping of fields and values, not {type(overrides).__name__}; "
            "give {'checkpoint.save_interval': 100}, for example."
        )
    flat: dict[str, Any] = {}
    for name, value in overrides.items():
        if (name in SECTIONS or name == "megatron") and isinstance(value, Mapping):
            flat |= {f"{name}.{field}": item for field, item in value.items()}
        else:
            flat[str(name)] = value
    for name, value in flat.items():
        if (setter := _setter(name)) is not None:
            raise ConfigError(
                f"overrides cannot set {name}, which is decided by {setter.format(name)}; "
                "leave it out of overrides."
            )
        read_override(name, value)
    return flat


def only_of_call(overrides: Mapping[str, Any], lasting: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides of one call, by dotted name.

    Args:
        overrides: As `check_overrides` takes them.
        lasting: Those of the trainer, as it gave them.

    Raises:
        ConfigError: As of `check_overrides`, or a field has been set for all calls.
    """
    own = check_overrides(overrides)
    for name in own.keys() & lasting.keys():
        raise ConfigError(
            f"{name} is given twice, for all trainings when the trainer was made, and for one by "
            "train(...); keep one of them."
        )
    return own


def _setter(name: str) -> str | None:
    """What sets a field that overrides cannot set."""
    if name in SET_ELSEWHERE:
        return SET_ELSEWHERE[name]
    section, _, path = name.partition(".")
    if section == "adapter":
        return "arguments of MoELoRA(...), which gives the trained adapter back"
    if section not in ("model", "moe"):
        return None
    field = path.partition(".")[0]
    changes = {it.path[0]: it.changes for it in settings_of(SECTIONS[section])}
    if changes.get(field, "training") == "training":  # an unknown one is reported by who reads it
        return None
    return f"{_RENAMED.get(field, field)} of MoEModel(...), whose weights have this shape"


def configure(
    base: RunConfig,
    options: TrainOptions,
    overrides: Mapping[str, Any],
    *,
    steps: int,
    evaluates: bool,
    world_size: int,
) -> RunConfig:
    """The configuration of one training.

    Args:
        base: That of the trainer, without overrides.
        options: The arguments of the call.
        overrides: What `check_overrides` gave.
        steps: Updates to make.
        evaluates: Whether there is a dataset to evaluate on.
        world_size: Number of processes.

    Raises:
        MoEError: An argument or override cannot be used, or contradicts another one.
    """
    for name in options.fields.keys() & overrides.keys():
        raise ConfigError(
            f"{name} is given twice, by overrides and by {options.name_of(name)} of train(...); "
            "keep one of them."
        )
    if not evaluates and (options.eval_interval or overrides.get("training.eval_interval")):
        raise ConfigError(
            "eval_interval needs text to evaluate on; give eval_dataset, or leave eval_interval "
            "out."
        )
    balancing = overrides.get("moe.load_balancing", base.moe.load_balancing)
    if options.load_balancing_loss_coef and balancing not in LOSS_BALANCING:
        raise ConfigError(
            f"load_balancing_loss_coef ({options.load_balancing_loss_coef}) has no effect with "
            f"load_balancing '{balancing}', which uses no loss; leave it out, or give "
            "MoETrainer(load_balancing='auxiliary_loss')."
        )
    decided = {
        "training.train_steps": steps,
        "training.global_batch_size": options.sequences,
        "training.learning_rate": options.learning_rate,
        "data.sequence_length": options.sequence_length,
        "data.split": "95,5,0" if evaluates else "100,0,0",
    }
    layout = {name: it for name, it in overrides.items() if name.startswith("parallel.")}
    parallel = apply_overrides(base, layout).parallel
    parallel.validate_processes(world_size, num_experts=base.moe.num_experts)
    copies = parallel.data_parallel_size(world_size)
    share = options.batch_size // copies if options.batch_size % copies == 0 else options.batch_size
    defaults = {
        "training.micro_batch_size": math.gcd(share, _LARGEST_MICRO_BATCH),
        "training.min_learning_rate": options.learning_rate / 10,
        "training.warmup_steps": min(steps // 10, _LONGEST_WARMUP),
        "training.eval_interval": steps if evaluates else None,
    }
    return apply_overrides(base, {**defaults, **options.fields, **overrides, **decided})
