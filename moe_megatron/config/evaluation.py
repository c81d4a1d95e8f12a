"""How a run is judged while it trains: by which value, on what else, and when it has had enough.

Held-out data of each task, or of all data where it has no tasks, is evaluated every
`training.eval_interval` steps. It does not know how that is computed.
"""

from dataclasses import dataclass
from typing import ClassVar

from moe_megatron.config import checks
from moe_megatron.config.conform import conform
from moe_megatron.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Metric:
    """A value of an evaluation, such as loss, or accuracy/code for that of one task."""

    kind: str
    task: str | None = None
    """Of which task; None: of all tasks, by their tokens."""

    KINDS: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "accuracy")

    @classmethod
    def read(cls, text: str) -> "Metric":
        """Read one from text.

        Raises:
            ConfigError: There is no such value.
        """
        kind, slash, task = text.partition("/")
        if kind not in cls.KINDS or (slash and not task):
            raise ConfigError(
                f"'{checks.clipped(text)}' is no value of an evaluation."
                f"{checks.nearest(kind, cls.KINDS)} Values are {checks.join_words(cls.KINDS)}, or "
                "such a value of one task, as in loss/code."
            )
        return cls(kind, task or None)

    @property
    def more_is_better(self) -> bool:
        """Whether a larger value is a better one."""
        return self.kind == "accuracy"

    def __str__(self) -> str:
        return self.kind if self.task is None else f"{self.kind}/{self.task}"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """What is evaluated beside the data of a run, and what follows from it.

    Raises:
        ConfigError: A value is out of range, or no value of an evaluation.
    """

    best: str | None = None
    """Value by which a checkpoint is the best: loss, perplexity or accuracy, or such a value of one
    task, as in loss/code; null: none is told apart."""

    patience: int | None = None
    """End the training after so many evaluations without a better value of `best` (null: loss)."""

    base: tuple[str, ...] = ()
    """Data of the base domain, as data.paths; it is evaluated, and not trained on."""

    max_forgetting: float | None = None
    """End the training when the loss of the base domain has risen by more than this, in nats."""

    def __post_init__(self) -> None:
        conform(self)
        checks.at_least(self, 1, "patience")
        checks.positive(self, "max_forgetting")
        if "" in self.base:
            raise ConfigError("evaluation.base must not hold an empty path.")
        if self.best is not None:
            try:
                Metric.read(self.best)
            except ConfigError as error:
                raise ConfigError(f"evaluation.best: {error}") from None

    @property
    def on(self) -> bool:
        """Whether anything is evaluated that a run without this section does not."""
        return self.best is not None or self.patience is not None or bool(self.base)

    @property
    def metric(self) -> Metric:
        """The value that is judged by."""
        return Metric.read(self.best or "loss")
