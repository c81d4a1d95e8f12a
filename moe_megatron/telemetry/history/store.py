"""The files of a history, through TensorStore: create, open, grow, truncate, read and write.

The order of writing makes it safe against kills: rows first, and only when they are on disk the
description that counts them. TensorStore writes each chunk and the description beside and renames
(in a bucket an object appears whole). Whoever reads sees the old or the new, and believes rows only
up to `last_step`. It does not know what is in a row, nor when to write.

TensorStore is imported on first use: it takes half a second, and only one rank needs it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_megatron.errors import DataError
from moe_megatron.telemetry.history.layout import ArrayLayout, Description
from moe_megatron.telemetry.history.location import Location

_DESCRIPTION = "zarr.json"
_UNFINISHED = ".__lock"  # how TensorStore names a file until it is whole
_SPEC = re.compile(r" \[tensorstore_spec=.*", re.DOTALL)
# Packing is a millisecond's work: one thread does, and leaves the cores to training.
_WRITER_CONTEXT = {"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 4}}

Array = npt.NDArray[Any]


def read_description(location: Location) -> Description | None:
    """Reads how far a history goes, or returns None where there is none.

    Raises:
        DataError: there is something else, or the place cannot be read.
    """
    import tensorstore as ts

    try:
        answer = ts.KvStore.open(location.kvstore).result().read(_DESCRIPTION).result()
    except ValueError as error:
        raise _unreadable(location, error) from error
    if answer.state != "value":
        return None
    try:
        return Description.from_json(answer.value)
    except DataError as error:
        raise DataError(
            f"{location.text}/{_DESCRIPTION}: {error}; restore that file or move the folder away"
        ) from error


class HistoryStore:
    """The arrays of one history, open. None is ever shorter than the description says.

    Args:
        location: where they are.
        description: as read from there, or of a new history.
        for_writing: work gently, beside a training run.
        create: make the arrays, empty, in place of any that are there.

    Raises:
        DataError: an array is missing, damaged or of another shape.
        OSError: an array cannot be created.
    """

    def __init__(
        self,
        location: Location,
        description: Description,
        *,
        for_writing: bool = False,
        create: bool = False,
    ) -> None:
        import tensorstore as ts

        self.description = description
        self._location = location
        self._context = ts.Context(_WRITER_CONTEXT if for_writing else {})
        try:
            self._kvstore = ts.KvStore.open(location.kvstore, context=self._context).result()
            self._arrays = self._open(description.layout.arrays(), create=create)
        except ValueError as error:
            raise (_unwritable if create else _unreadable)(location, error) from error
        self._check_shapes()
        if for_writing and location.folder is not None:
            for leftover in location.folder.glob(f"**/*{_UNFINISHED}"):
                leftover.unlink()  # of a killed writer: there is only one at a time
        if create:
            self.write({}, description.last_step)

    def _open(self, arrays: Iterable[ArrayLayout], *, create: bool) -> dict[str, Any]:
        import tensorstore as ts

        mode = ts.OpenMode(open=not create, create=create, delete_existing=create)
        opening = {
            array.name: ts.open(self._spec(array, create), context=self._context, open_mode=mode)
            for array in arrays
        }
        return {name: future.result() for name, future in opening.items()}

    def _spec(self, array: ArrayLayout, create: bool) -> dict[str, Any]:
        path = f"{self._location.kvstore['path']}{array.name}/"
        # Opened, chunks may have another size than this version would choose.
        metadata = array.metadata() if create else {"data_type": array.dtype}
        kvstore = {**self._location.kvstore, "path": path}
        return {"driver": "zarr3", "kvstore": kvstore, "metadata": metadata}

    def _check_shapes(self) -> None:
        for array in self.description.layout.arrays():
            found = tuple(self._arrays[array.name].shape)
            if found[1:] != array.row_shape:
                raise DataError(
                    f"{self._location.text}/{array.name} is an array {list(found)}, but its rows "
                    f"should be {list(array.row_shape)}; restore the history from a copy, or move "
                    "it away and start another one."
                )

    def add_quantities(self, names: tuple[str, ...]) -> None:
        """Makes an array of each quantity that the history lacks, NaN for all steps so far.

        Readers learn of them when they are there: the description comes last.

        Raises:
            OSError: as for `write`.
        """
        layout = self.description.layout.with_quantities(names)
        lacking = [array for array in layout.arrays() if array.name not in self._arrays]
        if not lacking:
            return
        try:
            self._arrays |= self._open(lacking, create=True)
        except ValueError as error:
            raise _unwritable(self._location, error) from error
        self.description = replace(self.description, layout=layout)
        self.write({}, self.description.last_step)

    def chunk_steps(self, name: str) -> int:
        """Steps in a chunk of an array."""
        steps: int | None = self._arrays[name].chunk_layout.write_chunk.shape[0]
        assert steps is not None
        return steps

    def read(self, name: str, window: tuple[slice, ...]) -> Array:
        """Reads rows `window[0]` of an array; rows never written hold its fill value.

        Raises:
            DataError: a chunk is damaged, or the array ends before the rows it should have.
        """
        opened = self._arrays[name]
        if window[0].start >= window[0].stop:
            return np.empty((0, *opened.shape[1:]), opened.dtype.numpy_dtype)
        try:
            values: Array = opened[window].read().result()
        except (ValueError, IndexError) as error:
            raise _unreadable(self._location, error) from error
        return values

    def write(self, rows: Mapping[str, tuple[int, Array]], last_step: int) -> None:
        """Writes rows of arrays and, when they are on disk, that there are steps to `last_step`.

        Args:
            rows: by array: the first row, and values of whole chunks from there.
            last_step: last step that is whole with them.

        Raises:
            OSError: the disk is full, the place cannot be written, or the bucket not be reached.
        """
        try:
            for name in self._arrays:
                first, values = rows.get(name, (0, ()))
                self._grow(name, max(first + len(values), last_step))
            writing = [
                self._arrays[name][first : first + len(values)].write(values)
                for name, (first, values) in rows.items()
            ]
            for future in writing:
                future.result()
            self._commit(last_step)
        except ValueError as error:
            raise _unwritable(self._location, error) from error

    def truncate(self, last_step: int) -> None:
        """Takes back all steps after `last_step`: at once for readers, then in the files.

        Rows that share a chunk with the last ones kept stay; nobody believes them.

        Raises:
            OSError: as for `write`.
        """
        try:
            self._commit(last_step)
            for name, opened in self._arrays.items():
                chunk_steps = self.chunk_steps(name)
                end = -(-last_step // chunk_steps) * chunk_steps
                shape = [min(end, opened.shape[0]), *opened.shape[1:]]
                self._arrays[name] = opened.resize(exclusive_max=shape).result()
        except ValueError as error:
            raise _unwritable(self._location, error) from error

    def _grow(self, name: str, num_rows: int) -> None:
        opened = self._arrays[name]
        if num_rows > opened.shape[0]:
            shape = [num_rows, *opened.shape[1:]]
            self._arrays[name] = opened.resize(exclusive_max=shape, expand_only=True).result()

    def _commit(self, last_step: int) -> None:
        first_step = min(self.description.first_step, last_step + 1)
        self.description = replace(self.description, first_step=first_step, last_step=last_step)
        self._kvstore.write(_DESCRIPTION, self.description.to_json()).result()


def _unreadable(location: Location, error: Exception) -> DataError:
    return DataError(
        f"the routing history {location.text} cannot be read: {_said(error)}. Restore it from a "
        "copy, or move it away and start another one."
    )


def _unwritable(location: Location, error: Exception) -> OSError:
    return OSError(f"the routing history {location.text} cannot be written: {_said(error)}")


def _said(error: Exception) -> str:
    """TensorStore's message without the specification, which fills a screen."""
    return _SPEC.sub("", str(error)).strip()
