"""What an evaluation found for one task: loss, accuracy, and what routing has kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from moe_megatron.config.data import BASE
from moe_megatron.telemetry.values.json_fields import (
    read_float,
    read_float_array,
    read_int,
    read_optional_float,
    read_str,
    require_fields,
    write_float,
)

_MAX_EXPONENT = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """One task, or the base domain, in one evaluation.

    Attributes:
        name: of the task.
        tokens: learned tokens of its held-out rows.
        loss: mean over them, in nats per token.
        accuracy: share of them that the model would have chosen; None where it is not known.
        kept: for each layer with experts, the share of the experts chosen in the first evaluation
            that are chosen now; () where that is not known.
    """

    name: str
    tokens: int
    loss: float
    accuracy: float | None = None
    kept: tuple[float, ...] = ()

    @property
    def perplexity(self) -> float:
        """`exp(loss)`, with the exponent capped at 20."""
        return math.exp(min(self.loss, _MAX_EXPONENT))

    def to_json_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "tokens": self.tokens,
            "loss": write_float(self.loss),
            "accuracy": write_float(self.accuracy),
            "kept": list(self.kept),
        }

    @classmethod
    def from_json_dict(cls, data: object) -> Self:
        """Reads what `to_json_dict` wrote.

        Raises:
            DataError: a field is missing, unknown or of the wrong type.
        """
        fields = require_fields(data, ("name", "tokens", "loss", "accuracy", "kept"))
        return cls(
            name=read_str(fields["name"], "name"),
            tokens=read_int(fields["tokens"], "tokens"),
            loss=read_float(fields["loss"], "loss"),
            accuracy=read_optional_float(fields["accuracy"], "accuracy"),
            kept=tuple(read_float_array(fields["kept"], "kept").tolist()),
        )


def value_of(scores: Sequence[TaskScore], kind: str, task: str | None = None) -> float | None:
    """A value of an evaluation: sum_t n_t v_t / sum_t n_t over tasks t with n_t tokens.

    Args:
        scores: Of all tasks; the base domain counts only where it is asked for.
        kind: "loss", "perplexity" or "accuracy".
        task: Of one task; None: of all.

    Returns:
        None where it was not measured.
    """
    chosen = [it for it in scores if (it.name != BASE if task is None else it.name == task)]
    values = [it.accuracy if kind == "accuracy" else it.loss for it in chosen]
    tokens = sum(it.tokens for it in chosen)
    if not tokens or None in values:
        return None
    pairs = zip(chosen, values, strict=True)
    mean = math.fsum(it.tokens * value for it, value in pairs if value is not None) / tokens
    return math.exp(min(mean, _MAX_EXPONENT)) if kind == "perplexity" else mean
