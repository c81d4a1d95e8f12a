"""The samples of a run: its balancing bias, which experts work together, and their tokens.

Samples are far between, so that a window without one is answered by the last before its end. It
knows the folder of samples and no other file of a run.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moe_megatron.telemetry.sinks.sample_files import (
    paths_with_tokens,
    read_pairs,
    read_sample_head,
    read_top_tokens,
    sample_paths,
)
from moe_megatron.telemetry.values.expert_load import Float64Array, Int64Array
from moe_megatron.telemetry.values.routing_sample import SampleHead
from moe_megatron.telemetry.values.top_tokens import TopTokens
from moe_megatron.webapp.columns import Span
from moe_megatron.webapp.routing_rows import ModelShape

_SUMMED = 4
"""Samples of a window that are summed; each is a whole step."""
_KEPT_HEADS = 256


class RunSamples:
    """The samples of one run, which may be training.

    Args:
        run_dir: Its folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._heads: OrderedDict[tuple[Path, int], SampleHead] = OrderedDict()

    def there(self) -> bool:
        """Whether there is any."""
        return bool(sample_paths(self._run_dir))

    def bias(self, spans: Sequence[Span], shape: ModelShape) -> Float64Array | None:
        """The balancing bias at the end of each column, as last sampled. [columns, L, E]

        NaN before the first sample; None where no sample has one.

        Raises:
            DataError: A sample is damaged.
        """
        paths = sample_paths(self._run_dir)
        steps = np.array(list(paths), dtype=np.int64)
        size = (len(spans), len(shape.layers), shape.num_experts)
        values, found = np.full(size, np.nan), False
        for column, (_, last) in enumerate(spans):
            place = int(np.searchsorted(steps, last, side="right")) - 1
            head = self._head(paths[int(steps[place])]) if place >= 0 else None
            if head is not None and head.expert_bias is not None and _is_of(head, shape):
                values[column], found = head.expert_bias, True
        return values if found else None

    def _head(self, path: Path) -> SampleHead:
        key = (path, path.stat().st_mtime_ns)
        if key not in self._heads:
            self._heads[key] = read_sample_head(path)
            while len(self._heads) > _KEPT_HEADS:
                self._heads.popitem(last=False)
        self._heads.move_to_end(key)
        return self._heads[key]

    def newest(self, span: Span, shape: ModelShape) -> list[tuple[Path, SampleHead]]:
        """The last samples of a window that pairs are summed of; without any, the last before.

        Raises:
            DataError: A sample is damaged.
        """
        until = {
            step: path for step, path in sample_paths(self._run_dir).items() if step <= span[1]
        }
        inside = [path for step, path in until.items() if step >= span[0]]
        chosen = inside[-_SUMMED:] or list(until.values())[-1:]
        heads = [(path, self._head(path)) for path in chosen]
        return [(path, head) for path, head in heads if _is_of(head, shape)]

    def has_tokens(self) -> bool:
        """Whether any has the tokens of experts."""
        return bool(paths_with_tokens(self._run_dir))

    def top_tokens(self, span: Span, shape: ModelShape, layer: int) -> tuple[int, TopTokens] | None:
        """The tokens of the experts of a layer, and the step that they were counted in.

        That is the last one of a window that has them, or the last before; several are not summed,
        since a token may be missing from one that was frequent in others.

        Raises:
            DataError: A sample is damaged.
        """
        until = [it for it in paths_with_tokens(self._run_dir).items() if it[0] <= span[1]]
        if not until or not _is_of(self._head(until[-1][1]), shape):
            return None
        step, path = until[-1]
        found = read_top_tokens(path, layer)
        return None if found is None else (step, found)


def summed_together(paths: Sequence[Path], layers: tuple[int, ...], num_experts: int) -> Int64Array:
    """Tokens that have both of two experts of a layer. [layers, E, E]

    Raises:
        DataError: A sample is damaged.
    """
    total = np.zeros((len(layers), num_experts, num_experts), dtype=np.int64)
    for path in paths:
        for pairs in read_pairs(path, layers):
            total[layers.index(pairs.layer)] += pairs.together
    return total


def summed_flow(paths: Sequence[Path], shape: ModelShape) -> Int64Array:
    """Tokens that go from an expert of a layer to one of the next. [L - 1, E, E]

    Raises:
        DataError: A sample is damaged.
    """
    total = np.zeros((len(shape.layers) - 1, shape.num_experts, shape.num_experts), dtype=np.int64)
    for path in paths:
        for pairs in read_pairs(path, shape.layers[:-1]):
            if pairs.flow is not None:
                total[shape.layers.index(pairs.layer)] += pairs.flow
    return total


def _is_of(head: SampleHead, shape: ModelShape) -> bool:
    return (head.layers, head.num_experts) == (shape.layers, shape.num_experts)
