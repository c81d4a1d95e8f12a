"""Prefill and decoding of several models, in turns, at each batch and length."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from moe_megatron.config.aligned import aligned
from moe_megatron.config.arguments import whole
from moe_megatron.inference.timing.weight_bytes import Weights

ROUNDS = 5
STEPS = 16


class Callee(Protocol):
    """What is timed: a transformers model, or anything that takes its arguments."""

    def __call__(self, *, input_ids: Tensor, past_key_values: Any, use_cache: bool) -> Any:
        """The output, with logits [B, T, V]."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A model that is to be timed."""

    name: str
    call: Callee
    config: Any
    weights: Weights | None = None
    """None: how much it reads is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was measured of a model at a batch and a length."""

    name: str
    batch: int
    length: int
    """Tokens of the prompt."""
    prefill_ms: float
    step_ms: float
    """A decoding step: a token of each row. Both are medians over rounds."""
    read_bytes: float | None
    """Of weights, a step."""

    @property
    def tokens_per_second(self) -> float:
        """Of all rows, decoding."""
        return 1e3 * self.batch / self.step_ms


@dataclass(frozen=True, slots=True)
class Timings:
    """The rows of a benchmark; printed, one table."""

    rows: Sequence[Row]
    baseline: str | None = None
    """The model that others are compared with, at the same batch and length."""

    def __str__(self) -> str:
        head = ["model", "batch", "prompt", "prefill ms", "ms a step", "tokens/s", "GB a step"]
        compared = self.baseline is not None
        if compared:
            head += [f"times {self.baseline}", "of the ratio of bytes"]
        lines = [head]
        for row in self.rows:
            read = "-" if row.read_bytes is None else f"{row.read_bytes / 1e9:.3g}"
            line = [row.name, str(row.batch), str(row.length), f"{row.prefill_ms:.1f}"]
            line += [f"{row.step_ms:.2f}", f"{row.tokens_per_second:.1f}", read]
            if compared:
                line += self._compared(row)
            lines.append(line)
        return "\n".join(aligned(lines))

    def _compared(self, row: Row) -> list[str]:
        """How many times as fast as the baseline, and the share of what its bytes allow."""
        other = next(
            it
            for it in self.rows
            if (it.name, it.batch, it.length) == (self.baseline, row.batch, row.length)
        )
        faster = other.step_ms / row.step_ms
        if row is other or row.read_bytes is None or other.read_bytes is None:
            return [f"{faster:.2f}", "-"]
        return [f"{faster:.2f}", f"{faster * row.read_bytes / other.read_bytes:.0%}"]


def timings(
    models: Sequence[Timed],
    batch_sizes: Sequence[int],
    sequence_lengths: Sequence[int],
    *,
    baseline: str | None = None,
    rounds: int = ROUNDS,
    steps: int = STEPS,
) -> Timings:
    """Time all models in turns.

    Args:
        models: What is timed.
        batch_sizes: Rows that decode together.
        sequence_lengths: Tokens of the prompt of each row, random.
        baseline: Name of the model that others are compared with.
        rounds: Times that every model has its turn; a first one is not counted.
        steps: Tokens that a row gets in each.

    Raises:
        ConfigError: A number is none, or below 1.
    """
    rows = []
    for batch in batch_sizes:
        for length in sequence_lengths:
            size = whole("batch_sizes", batch), whole("sequence_lengths", length)
            taken: Mapping[str, list[tuple[float, list[float]]]] = {it.name: [] for it in models}
            for number in range(whole("rounds", rounds) + 1):
                for it in models:
                    found = _turn(it, *size, whole("steps", steps))
                    if number:
                        taken[it.name].append(found)
            rows += [_row(it, *size, taken[it.name]) for it in models]
    return Timings(rows, baseline)


def _row(it: Timed, batch: int, length: int, taken: list[tuple[float, list[float]]]) -> Row:
    return Row(
        name=it.name,
        batch=batch,
        length=length,
        prefill_ms=1e3 * statistics.median(prefill for prefill, _ in taken),
        step_ms=1e3 * statistics.median(it for _, steps in taken for it in steps),
        read_bytes=None if it.weights is None else it.weights.read(batch),
    )


@torch.inference_mode()
def _turn(it: Timed, batch: int, length: int, steps: int) -> tuple[float, list[float]]:
    """Seconds of a prefill, and of each step after it, of random tokens."""
    from transformers import DynamicCache

    vocab = it.config.vocab_size
    ids = torch.randint(0, vocab, (batch, length + steps))
    kept = DynamicCache(config=it.config)
    began = time.perf_counter()
    it.call(input_ids=ids[:, :length], past_key_values=kept, use_cache=True)
    prefill, seconds = time.perf_counter() - began, []
    for step in range(length, length + steps):
        began = time.perf_counter()
        it.call(input_ids=ids[:, step : step + 1], past_key_values=kept, use_cache=True)
        seconds.append(time.perf_counter() - began)
    return prefill, seconds
