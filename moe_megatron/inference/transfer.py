"""How the bytes of an expert come into a row of memory: in place, or over to a device.

On a processor an expert is read where it stays. For a GPU it is read into pinned memory, from which
a stream of copies takes it while the stream of computation goes on. Three waits make that safe:

    a copy into a row           waits for the last computation with it      (`used`)
    a computation with a row    waits for the copy into it                  (`copied`)
    a read into pinned memory   waits for the copy out of it

The first two are waits of streams, so that no thread stops. The order is the same on any device;
tests run it on a processor with copies that are late on purpose. No GPU was at hand: the class
`CudaCopies` is checked by tests that are marked `gpu`, which nobody has run.
"""

import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from moe_megatron.errors import ConfigError
from moe_megatron.inference.cache.policies import Key

CPU = torch.device("cpu")
ReadInto = Callable[[Key, memoryview], None]


class Rows(Protocol):
    """Rows of memory for an expert each; `fill` is called by several threads."""

    def fill(self, key: Key, row: int, read: ReadInto) -> None:
        """Bring an expert into a row that nothing will be computed with before."""

    def lend(self, row: int) -> Tensor:
        """A row, uint8 [bytes], to compute with from now on."""

    def returned(self, row: int) -> None:
        """Note that all computations with a row have been asked for."""


class HostRows:
    """Rows in the memory of the processor; reads fill them in place."""

    def __init__(self, rows: int, nbytes: int) -> None:
        self._bytes = torch.empty(rows, nbytes, dtype=torch.uint8)
        self._views = [memoryview(row.numpy()) for row in self._bytes]

    def fill(self, key: Key, row: int, read: ReadInto) -> None:
        """See `Rows`."""
        read(key, self._views[row])

    def lend(self, row: int) -> Tensor:
        """See `Rows`."""
        return self._bytes[row]

    def returned(self, row: int) -> None:
        """Nothing: what was asked for is done."""


class Copies(Protocol):
    """A device's stream of copies, beside its stream of computation."""

    device: torch.device

    def staging(self, nbytes: int) -> Tensor:
        """Memory of the processor that the device can copy from, uint8 [nbytes]."""

    def copy(self, source: Tensor, target: Tensor, after: Any) -> Any:
        """Copy in the stream of copies, after an event (None: at once); the event of its end."""

    def mark(self) -> Any:
        """The event of all computation that has been asked for."""

    def computation_waits(self, event: Any) -> None:
        """Let computation that is asked for from now on wait for an event."""

    def thread_waits(self, event: Any) -> None:
        """Wait for an event."""


class CudaCopies:
    """Of a CUDA device; see `Copies`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def staging(self, nbytes: int) -> Tensor:
        """Pinned memory."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def copy(self, source: Tensor, target: Tensor, after: torch.cuda.Event | None) -> Any:
        """A copy that no thread waits for."""
        with torch.cuda.stream(self._stream):
            if after is not None:
                self._stream.wait_event(after)
            target.copy_(source, non_blocking=True)
            return self._stream.record_event()

    def mark(self) -> Any:
        """An event of the current stream."""
        return torch.cuda.current_stream(self.device).record_event()

    def computation_waits(self, event: torch.cuda.Event) -> None:
        """The current stream waits."""
        torch.cuda.current_stream(self.device).wait_event(event)

    def thread_waits(self, event: torch.cuda.Event) -> None:
        """The calling thread waits."""
        event.synchronize()


class DeviceRows:
    """Rows in the memory of a device, filled by its stream of copies.

    Args:
        rows: How many.
        nbytes: Of a row.
        copies: The device's.
    """

    def __init__(self, rows: int, nbytes: int, copies: Copies) -> None:
        self._bytes = torch.empty(rows, nbytes, dtype=torch.uint8, device=copies.device)
        self._copies, self._nbytes = copies, nbytes
        self._used: list[Any] = [None] * rows
        self._copied: list[Any] = [None] * rows
        self._own = threading.local()

    def fill(self, key: Key, row: int, read: ReadInto) -> None:
        """Read, and ask for the copy; each thread has pinned memory of its own."""
        if not hasattr(self._own, "staging"):
            self._own.staging, self._own.copied = self._copies.staging(self._nbytes), None
        if self._own.copied is not None:
            self._copies.thread_waits(self._own.copied)
        read(key, memoryview(self._own.staging.numpy()))
        copied = self._copies.copy(self._own.staging, self._bytes[row], self._used[row])
        self._own.copied = self._copied[row] = copied

    def lend(self, row: int) -> Tensor:
        """See `Rows`; computation waits for the copy, and the caller does not."""
        if self._copied[row] is not None:
            self._copies.computation_waits(self._copied[row])
        return self._bytes[row]

    def returned(self, row: int) -> None:
        """See `Rows`."""
        self._used[row] = self._copies.mark()


def rows_on(device: torch.device, rows: int, nbytes: int) -> Rows:
    """Rows in a device's memory.

    Raises:
        ConfigError: Experts are not computed on such a device.
    """
    if device.type == "cpu":
        return HostRows(rows, nbytes)
    if device.type == "cuda":
        return DeviceRows(rows, nbytes, CudaCopies(device))
    raise ConfigError(f"experts are computed on 'cpu' or 'cuda', and not on {device.type!r}.")


def check_device(device_map: str | None) -> torch.device:
    """The device that a model is loaded to.

    Raises:
        ConfigError: It is none, or this machine has none of the kind.
    """
    wanted = f"device_map ({device_map!r:.40}) must be 'cpu', 'cuda' or 'cuda:0' and so on"
    try:
        device = torch.device("cpu" if device_map is None else device_map)
    except (RuntimeError, TypeError):
        raise ConfigError(f"{wanted}.") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{wanted}.")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= count:
        raise ConfigError(f"{wanted}, and this machine has {count or 'no'} CUDA devices.")
    return device
