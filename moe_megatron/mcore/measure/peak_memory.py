"""The most memory that this process has held at once since it was last asked.

On a GPU it is the allocator's own count of what tensors take. On a CPU it is the high-water mark of
resident memory, which Linux lets a process begin anew; elsewhere nothing is known. Neither waits
for the device: a question takes microseconds. It does not know what a step is.
"""

import os
import re
from contextlib import suppress

import torch

_MARK = re.compile(rb"VmHWM:\s+(\d+) kB")
_BEGIN_ANEW = b"5"  # proc(5), /proc/pid/clear_refs
_MOST_BYTES = 8192


class PeakMemory:
    """Begins with what the process holds now.

    Args:
        on_gpu: Whether it is the memory of the current GPU. Its peak statistics begin anew with
            each question, also for others who read them.
    """

    def __init__(self, *, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._files: tuple[int, int] | None = None
        if not on_gpu:
            with suppress(OSError):
                mark = os.open("/proc/self/status", os.O_RDONLY)
                try:
                    self._files = mark, os.open("/proc/self/clear_refs", os.O_WRONLY)
                except OSError:
                    os.close(mark)
        self.take()

    def take(self) -> float:
        """Bytes, of which the next question knows nothing any more; 0.0 where they are unknown."""
        if self._on_gpu:
            peak = float(torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()
            return peak
        if self._files is None:
            return 0.0
        mark, clear = self._files
        try:
            found = _MARK.search(os.pread(mark, _MOST_BYTES, 0))
            os.pwrite(clear, _BEGIN_ANEW, 0)
        except OSError:  # a mark that does not begin anew is no peak of a step
            self.close()
            return 0.0
        return 1024.0 * int(found[1]) if found else 0.0

    def close(self) -> None:
        """Close its files; from now on nothing is known."""
        files, self._files = self._files, None
        for file in files or ():
            os.close(file)
