"""Reads any window of a routing history, of a finished run or one that is being written.

It uses rows only up to the last complete step, which `refresh` looks up again. It knows what the
arrays mean, not how they are stored.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_megatron.errors import DataError
from moe_megatron.locations import Location
from moe_megatron.telemetry.history.layout import (
    COUNTS,
    LAYER_COUNTS,
    NOT_MEASURED,
    SUMS,
    TOKENS,
    Description,
)
from moe_megatron.telemetry.history.location import history_location
from moe_megatron.telemetry.history.store import Array, HistoryStore, read_description
from moe_megatron.telemetry.values.json_fields import Int64Array
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

# Snapshots are read in blocks: 64 of the largest models take 4 MB.
_BLOCK = 64


class RoutingHistory:
    """A history, open for reading.

        history = RoutingHistory("runs/my_run/history")
        counts = history.tokens_per_expert(first=900, last=1000)   # [101, L, E]
        dropped = history.series("dropped")                        # [steps, L]

    Windows are ranges of steps, counted from 1, that include both ends. By default they begin with
    `first_step` and end with `last_step`.

    Args:
        address: a folder, or s3://bucket/prefix or gs://bucket/prefix.

    Raises:
        ConfigError: the address is none of these.
        DataError: there is no history, or it is damaged.
    """

    def __init__(self, address: str | Path) -> None:
        self._location = history_location(address)
        self._store = HistoryStore(self._location, _require_description(self._location))

    @property
    def layers(self) -> tuple[int, ...]:
        """Global 1-based numbers of the MoE layers."""
        return self._store.description.layout.layers

    @property
    def num_experts(self) -> int:
        """Experts in each layer."""
        return self._store.description.layout.num_experts

    @property
    def top_k(self) -> int:
        """Target number of experts for each token."""
        return self._store.description.layout.top_k

    @property
    def quantities(self) -> tuple[str, ...]:
        """Names of the quantities that are kept, including ones unknown to this process."""
        return self._store.description.layout.quantities

    @property
    def first_step(self) -> int:
        """First step that may be recorded: 1, or later for a run that began from a checkpoint."""
        return self._store.description.first_step

    @property
    def last_step(self) -> int:
        """Last complete step at the last `refresh`; `first_step - 1` while there is none."""
        return self._store.description.last_step

    def refresh(self) -> None:
        """Looks up again how far the history goes; after a resume it may be shorter.

        Raises:
            DataError: it is gone or damaged.
        """
        self._store = HistoryStore(self._location, _require_description(self._location))

    def tokens_per_expert(
        self,
        first: int | None = None,
        last: int | None = None,
        *,
        layers: Sequence[int] | None = None,
    ) -> npt.NDArray[np.int32]:
        """Assignments to each expert, without dropped ones; 0 where not measured. [steps, L, E]

        Args:
            first: first step of the window.
            last: last step of the window.
            layers: global numbers of the layers to read, which saves most of the time for others.

        Raises:
            DataError: the window or a layer is not in the history, or a file is damaged.
        """
        steps = self._rows(first, last)
        if layers is None:
            return self._store.read(COUNTS, (steps,))
        columns = [self._column(layer) for layer in layers]
        read = [self._store.read(COUNTS, (steps, slice(c, c + 1))) for c in columns]
        return np.concatenate(read, axis=1)

    @property
    def sum_steps(self) -> int:
        """Steps of each of the sums that it has; 0 where an earlier version wrote it."""
        return self._store.description.layout.sum_steps

    def sums(self, first: int, last: int) -> Int64Array:
        """Sums of `tokens_per_expert` over blocks of `sum_steps` steps. [blocks, L, E]

        Args:
            first: first step of a block: one after a multiple of `sum_steps`.
            last: last step of a block: a multiple of it.

        Raises:
            DataError: there are no sums, the window does not consist of whole blocks, or is not in
                the history, or a file is damaged.
        """
        each = self.sum_steps
        if not each or (first - 1) % each or last % each:
            raise DataError(
                f"steps {first} to {last} are no whole sums of the routing history "
                f"{self._location.text}, which has them over {each} steps; read tokens_per_expert."
            )
        rows = self._rows(max(first, self.first_step), last)
        return self._store.read(SUMS, (slice((first - 1) // each, rows.stop // each),))

    def series(self, name: str, first: int | None = None, last: int | None = None) -> Array:
        """Values of each layer: "assigned" or "dropped" (int64), or a quantity. [steps, L]

        Where nothing was measured, counts are 0 and a quantity is NaN.

        Raises:
            DataError: there is no such series, the window is not in the history, or a file is
                damaged.
        """
        names = self._store.description.layout.series_names
        if name not in names:
            raise DataError(f"no series '{name}' in this history, which has {', '.join(names)}")
        return self._store.read(name, (self._rows(first, last),))

    def tokens(self, first: int | None = None, last: int | None = None) -> Int64Array:
        """Tokens that each layer routed; -1 where nothing was measured. [steps]

        Raises:
            DataError: the window is not in the history, or a file is damaged.
        """
        return self._store.read(TOKENS, (self._rows(first, last),))

    def snapshots(
        self, first: int | None = None, last: int | None = None
    ) -> Iterator[RoutingSnapshot]:
        """Yields the snapshot of each measured step, as it was written.

        Raises:
            DataError: the window is not in the history, or a file is damaged.
        """
        rows = self._rows(first, last)
        for start in range(rows.start, rows.stop, _BLOCK):
            yield from self._block(start + 1, min(start + _BLOCK, rows.stop))

    def profile(self, first: int | None = None, last: int | None = None) -> RoutingProfile:
        """Sums the measured steps of a window.

        Raises:
            DataError: the window is not in the history, or a file is damaged.
        """
        profile = RoutingProfile.empty(
            layers=self.layers, num_experts=self.num_experts, top_k=self.top_k
        )
        for snapshot in self.snapshots(first, last):
            profile.add(snapshot)
        return profile

    def _block(self, first: int, last: int) -> Iterator[RoutingSnapshot]:
        counts = self.tokens_per_expert(first, last).astype(np.int64)
        numbers = {name: self.series(name, first, last) for name in LAYER_COUNTS}
        values = {name: self.series(name, first, last) for name in self.quantities}
        for row, tokens in enumerate(self.tokens(first, last).tolist()):
            if tokens == NOT_MEASURED:
                continue
            try:
                yield RoutingSnapshot(
                    step=first + row,
                    tokens=tokens,
                    top_k=self.top_k,
                    layers=self.layers,
                    tokens_per_expert=counts[row],
                    **{name: rows[row] for name, rows in numbers.items()},
                    per_layer={name: rows[row] for name, rows in values.items()},
                )
            except AssertionError as error:
                raise DataError(
                    f"the routing history {self._location.text} is inconsistent at step "
                    f"{first + row}: {error}"
                ) from error

    def _rows(self, first: int | None, last: int | None) -> slice:
        first = self.first_step if first is None else first
        last = self.last_step if last is None else last
        empty = first == last + 1 and self.first_step <= first
        if not (self.first_step <= first <= last <= self.last_step or empty):
            raise DataError(
                f"steps {first} to {last} are not in the routing history {self._location.text}, "
                f"which has {self.first_step} to {self.last_step}"
            )
        return slice(first - 1, last)

    def _column(self, layer: int) -> int:
        if layer not in self.layers:
            known = ", ".join(map(str, self.layers))
            raise DataError(f"layer {layer} has no router; the MoE layers are {known}")
        return self.layers.index(layer)


def _require_description(location: Location) -> Description:
    description = read_description(location)
    if description is None:
        raise DataError(
            f"{location.text}: no routing history; a training run writes it unless "
            "telemetry.history is false"
        )
    return description
