"""How the model is trained: steps, batches, learning rate, optimizer, precision, evaluation.

Everything is counted in steps (one optimizer update each) and sequences. It does not know the
number of processes; `RunConfig.validate` checks the batch size against it.
"""

from dataclasses import dataclass
from typing import Literal

from moe_megatron.config import checks
from moe_megatron.config.conform import conform
from moe_megatron.config.fields import Flag, setting
from moe_megatron.errors import ConfigError

DecayStyle = Literal["cosine", "linear", "constant", "inverse-square-root", "WSD"]
Precision = Literal["fp32", "bf16", "fp8", "auto"]
Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """Steps, batch sizes, optimizer (AdamW) and evaluation.

    Raises:
        ConfigError: If a value is out of range, or the schedule contradicts itself.
    """

    train_steps: int = setting(300, flag="train-iters")
    """Optimizer updates in the whole run."""

    micro_batch_size: int = setting(4, flag="micro-batch-size")
    """Sequences that one model copy computes at a time."""

    global_batch_size: int = setting(8, flag="global-batch-size")
    """Sequences in one update, over all processes; reached by accumulating gradients."""

    learning_rate: float = setting(2e-3, flag="lr")
    """Peak learning rate."""

    min_learning_rate: float = setting(2e-4, flag="min-lr")
    """Learning rate at the end of the decay."""

    warmup_steps: int = setting(20, flag="lr-warmup-iters")
    """Steps of linear warmup from 0 to the peak."""

    decay_style: DecayStyle = setting("cosine", flag="lr-decay-style")
    """Decay after the warmup, until the last step; WSD also needs megatron.lr-wsd-decay-iters."""

    weight_decay: float = setting(0.1, flag="weight-decay")
    """Decoupled weight decay of AdamW."""

    adam_beta1: float = setting(0.9, flag="adam-beta1")
    """Decay of the running mean of gradients."""

    adam_beta2: float = setting(0.95, flag="adam-beta2")
    """Decay of the running mean of squared gradients."""

    clip_grad: float = setting(1.0, flag="clip-grad")
    """Largest norm of the whole gradient; 0 turns clipping off."""

    seed: int = setting(1234, flag="seed")
    """Seed of initialization, data order and dropout; Megatron takes none below 1."""

    deterministic: bool = setting(False, flag="deterministic-mode")
    """Use only operations that give the same bits every time, on the same machines and layout."""

    precision: Precision = "auto"
    """Number format of the computation; auto chooses by device and logs the reason."""

    eval_interval: int | None = setting(100, flag="eval-interval")
    """Steps between evaluations; null: never evaluate."""

    eval_steps: int = setting(10, flag="eval-iters")
    """Global batches in one evaluation."""

    log_interval: int = setting(1, flag="log-interval")
    """Steps between lines of Megatron's own log; metrics.jsonl has every step."""

    recompute: Recompute = setting(
        "none",
        flag=Flag(
            name="recompute-granularity", write=lambda kind: None if kind == "none" else (kind,)
        ),
    )
    """Activations to recompute in the backward pass to save memory: none, those of attention, or
    those of whole layers."""

    def __post_init__(self) -> None:
        conform(self)
        checks.at_least(
            self,
            1,
            "seed",
            "train_steps",
            "micro_batch_size",
            "global_batch_size",
            "eval_interval",
            "eval_steps",
            "log_interval",
        )
        checks.positive(self, "learning_rate")
        checks.at_least(self, 0, "min_learning_rate", "warmup_steps", "weight_decay", "clip_grad")
        checks.fraction(self, "adam_beta1", "adam_beta2")
        if self.min_learning_rate > self.learning_rate:
            raise ConfigError(
                f"training.min_learning_rate ({self.min_learning_rate}) must not exceed "
                f"training.learning_rate ({self.learning_rate})."
            )
        if self.warmup_steps >= self.train_steps:
            raise ConfigError(
                f"training.warmup_steps ({self.warmup_steps}) must be less than "
                f"training.train_steps ({self.train_steps}); shorten the warmup or train longer."
            )
        if self.global_batch_size % self.micro_batch_size:
            raise ConfigError(
                f"training.global_batch_size ({self.global_batch_size}) must be a multiple of "
                f"training.micro_batch_size ({self.micro_batch_size})."
            )
