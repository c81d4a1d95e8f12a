"""Puts samples, or pairs of them, into rows of equal length: several into one, none into two.

Best fit, the longest first: each sample goes to the row in which it leaves the least room. Rows
depend on the samples and the length of a row alone, so every process packs the same ones, and a
run that goes on finds its place again. A sample of n tokens takes n - 1 places: nothing is
predicted after the last token, and nothing predicts the first.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_megatron.data.instructions.stored import Stored, StoredPairs
from moe_megatron.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedRows:
    """Which samples share a row."""

    rows: tuple[tuple[int, ...], ...]
    """Numbers of samples, for each row."""
    cut: int
    """Samples that are longer than a row, and are cut at its end."""
    left_out: int
    """Samples without a learned token before that end, which are in no row."""
    filled: float
    """Share of places that are no padding."""
    of_pairs: bool = False
    """Whether they hold pairs, each side of which may take half a row."""

    @property
    def lines(self) -> tuple[str, ...]:
        """What a person should know of the rows; nothing if every sample is whole."""
        if not self.cut and not self.left_out:
            return ()
        longer = "samples are longer than a row and are cut at its end"
        if self.of_pairs:
            longer = "pairs have an answer that is longer than half a row and is cut there"
        return (
            f"{self.cut:,} {longer}; {self.left_out:,} have no answer before it and are left out. "
            "A larger data.sequence_length keeps more.",
        )


def packed_rows(
    stored: Stored, length: int, numbers: Sequence[int] | NDArray[np.int64] | None = None
) -> PackedRows:
    """Put samples into rows.

    Args:
        stored: The samples or pairs.
        length: Places of a row.
        numbers: Those that are meant, such as those of a split; None: all.

    Raises:
        DataError: None of them has a learned token within a row.
    """
    chosen = np.arange(len(stored)) if numbers is None else np.asarray(numbers, dtype=np.int64)
    places, answered = stored.places(length)[chosen], stored.answered(length)[chosen]
    of_pairs = isinstance(stored, StoredPairs)
    if not answered.any():
        raise DataError(
            f"none of {len(chosen):,} {'pairs' if of_pairs else 'samples'} of {stored.prefix} has "
            f"{'both answers' if of_pairs else 'an answer'} within a row of {length:,} tokens; set "
            "a larger data.sequence_length, or give more data."
        )
    kept, places = chosen[answered], places[answered]
    rows = tuple(tuple(int(kept[it]) for it in row) for row in best_fit(places.tolist(), length))
    return PackedRows(
        rows=rows,
        cut=int(stored.cut(length)[kept].sum()),
        left_out=int((~answered).sum()),
        filled=float(places.sum() / (len(rows) * length)),
        of_pairs=of_pairs,
    )


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Divide things among rows with room for `room` each, the longest things first.

    Args:
        lengths: Room that each thing takes, 1 to `room`.
        room: Room of a row.

    Returns:
        Numbers of things, for each row.
    """
    rows: list[list[int]] = []
    with_room: defaultdict[int, list[int]] = defaultdict(list)
    """Rows by the room that is left in them."""
    rooms: list[int] = []
    """The keys of `with_room` that have rows, in order."""
    for number in sorted(range(len(lengths)), key=lambda it: (-lengths[it], it)):
        length = lengths[number]
        place = bisect_left(rooms, length)
        if place == len(rooms):
            left, row = room, len(rows)
            rows.append([])
        else:
            left = rooms[place]
            row = with_room[left].pop()
            if not with_room[left]:
                del rooms[place]
        rows[row].append(number)
        if left > length:
            if not with_room[left - length]:
                insort(rooms, left - length)
            with_room[left - length].append(row)
    return rows
