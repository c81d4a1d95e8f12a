"""The files of a history, through TensorStore: create, open, grow, truncate, read and write.

The order of writes makes it safe to kill the writer: rows come first, and the description that
counts them only when they are on disk. TensorStore writes chunks and description to temporary files
and renames them (in a bucket, an object appears complete). A reader sees either the old or the new
state, and uses rows only up to `last_step`. It does not know what is in a row, nor when to write.

TensorStore is imported on first use: it takes half a second, and only one rank needs it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_megatron.errors import DataError
from moe_megatron.locations import Location, reason_of
from moe_megatron.telemetry.history.layout import ArrayLayout, Description
from moe_megatron.telemetry.history.local_files import check_files

_DESCRIPTION = "zarr.json"
_UNFINISHED = ".__lock"  # suffix of TensorStore's temporary files
# Compressing takes a millisecond: one thread is enough and leaves the cores to training.
_WRITER_CONTEXT = {"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 4}}

Array = npt.NDArray[Any]


def read_description(location: Location) -> Description | None:
    """Reads the description of a history, or returns None if there is no history.

    Raises:
        DataError: the file is not a history's description, or cannot be read.
    """
    import tensorstore as ts

    if location.folder is not None:
        check_files(location.folder)
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
    """The open arrays of one history. No array is ever shorter than the description says.

    Args:
        location: where they are stored.
        description: as read from there, or that of a new history.
        for_writing: use few threads, next to a training run.
        create: create empty arrays, replacing any existing ones.

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
        if location.folder is not None and not create:
            check_files(location.folder, description)
        self._context = ts.Context(_WRITER_CONTEXT if for_writing else {})
        try:
            self._kvstore = ts.KvStore.open(location.kvstore, context=self._context).result()
            self._arrays = self._open(description.layout.arrays(), create=create)
        except ValueError as error:
            raise (_unwritable if create else _unreadable)(location, error) from error
        self._check_shapes()
        if for_writing and location.folder is not None:
            for leftover in location.folder.glob(f"**/*{_UNFINISHED}"):
                leftover.unlink()  # from a killed writer: there is only one writer at a time
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
        # Chunks of existing arrays may have another size than this version would choose.
        metadata = array.metadata() if create else {"data_type": array.dtype}
        kvstore = {**self._location.kvstore, "path": path}
        return {"driver": "zarr3", "kvstore": kvstore, "metadata": metadata}

    @property
    def _layouts(self) -> dict[str, ArrayLayout]:
        return {array.name: array for array in self.description.layout.arrays()}

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
        """Creates an array for each quantity that the history lacks, NaN for all steps so far.

        The description is written last, so readers see the arrays only when they exist.

        Raises:
            OSError: as for `write`.
        """
        layout = self.description.layout.with_quantities(names)
        missing = [array for array in layout.arrays() if array.name not in self._arrays]
        if not missing:
            return
        try:
            self._arrays |= self._open(missing, create=True)
        except ValueError as error:
            raise _unwritable(self._location, error) from error
        self.description = replace(self.description, layout=layout)
        self.write({}, self.description.last_step)

    def chunk_steps(self, name: str) -> int:
        """Steps in a chunk of an array."""
        rows: int | None = self._arrays[name].chunk_layout.write_chunk.shape[0]
        assert rows is not None
        return rows * self._layouts[name].row_steps

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
        """Writes rows of arrays and, when they are on disk, a description up to `last_step`.

        Args:
            rows: for each array, the first row and the values of complete chunks from there.
            last_step: last step that is complete once they are written.

        Raises:
            OSError: the disk is full, the files cannot be written, or the bucket is unreachable.
        """
        try:
            for name, array in self._layouts.items():
                first, values = rows.get(name, (0, ()))
                self._grow(name, max(first + len(values), array.rows(last_step)))
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
        """Removes all steps after `last_step`: first from the description, then from the arrays.

        Rows in the same chunk as the last kept ones remain in the file; readers ignore them.

        Raises:
            OSError: as for `write`.
        """
        try:
            self._commit(last_step)
            for name, array in self._layouts.items():
                opened, chunk_steps = self._arrays[name], self.chunk_steps(name)
                end = -(-last_step // chunk_steps) * chunk_steps
                shape = [min(array.rows(end), opened.shape[0]), *opened.shape[1:]]
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
        f"the routing history {location.text} cannot be read: {reason_of(error)}. Restore it "
        "from a copy, or move it away and start another one."
    )


def _unwritable(location: Location, error: Exception) -> OSError:
    message = reason_of(error)
    return OSError(f"the routing history {location.text} cannot be written: {message}")
