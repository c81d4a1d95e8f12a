"""Executes a plan with several workers, a constant amount of memory, and a journal.

Bytes go through a small buffer that stays in the processor's cache, where their checksum is also
computed; that is faster than letting the kernel copy. Data is written to a staging folder, which
becomes the destination when it is complete.
"""

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from moe_megatron.checkpoint.execute.compute import compute
from moe_megatron.checkpoint.execute.journal import FILE, Finished, Journal
from moe_megatron.checkpoint.formats import byte_ranges, dtypes
from moe_megatron.checkpoint.formats.view import View
from moe_megatron.checkpoint.plan.tasks import Plan, Task
from moe_megatron.checkpoint.progress import Advance, show_progress
from moe_megatron.errors import CheckpointError

_UNIT_BYTES = 32 * 2**20
"""Approximate amount of work, per worker, that is lost when a conversion is killed."""
_MOST_WORKERS = 4
_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True, slots=True)
class Unit:
    """Tasks that fill one range of one file without gaps, and count as finished only together."""

    number: int
    tasks: tuple[Task, ...]

    @property
    def file(self) -> int:
        """Number of the target file."""
        return self.tasks[0].file

    @property
    def offset(self) -> int:
        """Where the range begins."""
        return self.tasks[0].offset

    @property
    def nbytes(self) -> int:
        """Length of the range."""
        return self.tasks[-1].end - self.offset


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of an execution."""

    seconds: float
    resumed_bytes: int
    """Number of bytes kept from an earlier attempt, whose checksums match."""
    ranges: tuple[tuple[str, int, int, str], ...]
    """File, offset, length and checksum of every range written."""
    nonfinite: tuple[Task, ...]
    """Tasks that wrote infinities or NaN."""


def choose_workers(requested: int | None) -> int:
    """Number of threads: as requested, or one per core, up to four.

    Raises:
        CheckpointError: Less than one was requested.
    """
    if requested is None:
        return min(_MOST_WORKERS, len(os.sched_getaffinity(0)))
    if requested < 1:
        raise CheckpointError(f"the number of workers ({requested}) must be at least 1.")
    return requested


def units_of(plan: Plan) -> tuple[Unit, ...]:
    """Group the tasks of a plan into units."""
    of_units: list[list[Task]] = []
    filled = 0
    for task in plan.tasks:
        last = of_units[-1][-1] if of_units else None
        together = last is not None and last.file == task.file
        assert task.offset == (last.end if last and together else 0), "tasks leave no gaps"
        if not together or filled + task.nbytes > _UNIT_BYTES:
            of_units.append([])
            filled = 0
        of_units[-1].append(task)
        filled += task.nbytes
    return tuple(Unit(number, tuple(tasks)) for number, tasks in enumerate(of_units))


def execute(
    plan: Plan,
    staging: Path,
    *,
    workers: int | None = None,
    resume: bool = True,
    progress: bool = True,
) -> Outcome:
    """Write the files of a plan into a folder.

    Args:
        plan: The plan.
        staging: The folder; it may contain parts from an interrupted attempt.
        workers: Number of threads; None chooses it.
        resume: Keep what an earlier attempt at the same plan finished.
        progress: Show progress on stderr.

    Raises:
        CheckpointError: A source changed or cannot be read, the disk is full, or another process
            uses the folder. Finished parts are kept, so that the next attempt continues.
    """
    started = time.monotonic()
    threads = choose_workers(workers)
    staging.mkdir(parents=True, exist_ok=True)
    journal = Journal(staging, plan.hash)
    try:
        with _Run(plan, staging, journal) as run:
            with show_progress(plan.title, plan.nbytes, enabled=progress) as advance:
                resumed = run.resume(advance) if resume else run.start_over()
                run.work(threads, advance)
            for source in plan.sources:
                source.check_unchanged()
            _write_tables(plan, staging)
            seconds = time.monotonic() - started
            return Outcome(seconds, resumed, run.ranges(), run.nonfinite())
    except OSError as error:
        raise _explained(error, plan, staging) from error
    finally:
        journal.close()


class _Run:
    """One attempt: its open files and finished units."""

    def __init__(self, plan: Plan, staging: Path, journal: Journal) -> None:
        self._plan, self._staging, self._journal = plan, staging, journal
        self._units = units_of(plan)
        self._finished: dict[int, Finished] = {}
        self._sources: dict[int, int] = {}
        self._targets: list[int] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def __enter__(self) -> "_Run":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (*self._sources.values(), *self._targets):
            os.close(descriptor)

    def start_over(self) -> int:
        """Discard earlier attempts; returns 0, the number of bytes kept."""
        for path in self._staging.iterdir():
            if path.name != FILE:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._journal.start()
        self._open()
        return 0

    def resume(self, advance: Advance) -> int:
        """Keep what an earlier attempt finished; returns the number of bytes kept."""
        recorded = self._journal.read()
        if not recorded:
            return self.start_over()
        self._open()
        kept = 0
        for unit in self._units:
            if unit.number in recorded and self._digest(unit) == recorded[unit.number].digest:
                self._finished[unit.number] = recorded[unit.number]
                kept += unit.nbytes
                advance(unit.nbytes)
        return kept

    def work(self, threads: int, advance: Advance) -> None:
        """Write every unit that is not finished."""
        left = [unit for unit in _interleaved(self._units) if unit.number not in self._finished]
        self._check_space(left)
        pending = iter(left)
        with ThreadPoolExecutor(threads, thread_name_prefix="convert") as pool:
            futures = [pool.submit(self._worker, pending, advance) for _ in range(threads)]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                self._stop.set()
        for future in futures:
            future.result()

    def ranges(self) -> tuple[tuple[str, int, int, str], ...]:
        """File, offset, length and checksum of each unit."""
        names = [target.name for target in self._plan.targets]
        return tuple(
            (names[u.file], u.offset, u.nbytes, self._finished[u.number].digest)
            for u in self._units
        )

    def nonfinite(self) -> tuple[Task, ...]:
        """Tasks that wrote infinities or NaN."""
        return tuple(
            unit.tasks[number]
            for unit in self._units
            for number in self._finished[unit.number].nonfinite
        )

    def _open(self) -> None:
        for target in self._plan.targets:
            path = self._staging / target.name
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            self._targets.append(descriptor)
            os.ftruncate(descriptor, target.size)

    def _check_space(self, left: Sequence[Unit]) -> None:
        needed = sum(unit.nbytes for unit in left)
        written = sum(os.fstat(descriptor).st_blocks * 512 for descriptor in self._targets)
        needed = min(needed, self._plan.nbytes - written)
        if needed > shutil.disk_usage(self._staging).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _worker(self, pending: Iterator[Unit], advance: Advance) -> None:
        while not self._stop.is_set():
            with self._lock:
                unit = next(pending, None)
            if unit is None:
                return
            finished = self._write(unit)
            with self._lock:
                self._finished[unit.number] = finished
                self._journal.add(finished)
            advance(unit.nbytes)

    def _write(self, unit: Unit) -> Finished:
        writer = byte_ranges.RangeWriter(self._targets[unit.file], unit.offset)
        nonfinite = []
        for number, task in enumerate(unit.tasks):
            if task.literal:
                writer.write(memoryview(task.literal))
                continue
            if task.is_copy:
                found = [self._copy(writer, move.view, task.dtype) for move in task.moves]
                suspect = any(found)
            else:
                data = compute(task, self._read)
                suspect = dtypes.has_nonfinite(data, task.dtype)
                writer.write(memoryview(data))
            if suspect:
                nonfinite.append(number)
        return Finished(unit.number, writer.finish(), tuple(nonfinite))

    def _copy(self, writer: byte_ranges.RangeWriter, view: View, dtype: str) -> bool:
        """Copy a packed view; returns whether it holds infinities or NaN."""
        offset, nbytes = view.offset, view.elements * dtypes.item_size(dtype)
        suspect = False
        while nbytes:
            room = writer.room(nbytes)
            self._read(view.file, offset, room)
            suspect = suspect or dtypes.has_nonfinite(room, dtype)
            writer.advance(len(room))
            offset += len(room)
            nbytes -= len(room)
        return suspect

    def _read(self, file: int, offset: int, into: memoryview) -> None:
        if not len(into):
            return
        count = byte_ranges.read_into(self._source(file), offset, into)
        if count < len(into):
            raise CheckpointError(
                f"{self._plan.sources[file].path} ends at byte {offset + count} but was longer "
                "when the conversion began; wait until nothing writes to it and start again."
            )

    def _source(self, file: int) -> int:
        with self._lock:
            if file not in self._sources:
                self._sources[file] = os.open(self._plan.sources[file].path, os.O_RDONLY)
            return self._sources[file]

    def _digest(self, unit: Unit) -> str:
        """Checksum of the bytes that the target file holds in the range of a unit."""
        algorithm = byte_ranges.ALGORITHMS[byte_ranges.DEFAULT]
        return byte_ranges.digest(self._targets[unit.file], unit.offset, unit.nbytes, algorithm)


def _interleaved(units: Sequence[Unit]) -> list[Unit]:
    """Units of all files in turn: workers that write to the same file would block each other."""
    files: dict[int, list[Unit]] = {}
    for unit in units:
        files.setdefault(unit.file, []).append(unit)
    rounds = zip_longest(*files.values())
    return [unit for turn in rounds for unit in turn if unit is not None]


def _write_tables(plan: Plan, staging: Path) -> None:
    for name, content in plan.tables:
        path = staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(content())
        temporary.replace(path)


def _explained(error: OSError, plan: Plan, staging: Path) -> CheckpointError:
    if error.errno in _FULL:
        free = shutil.disk_usage(staging).free / 1e9
        return CheckpointError(
            f"the disk of {staging} is full: the conversion writes {plan.nbytes / 1e9:.2f} GB and "
            f"{free:.2f} GB are free. Free space and start it again to continue; or delete "
            f"{staging}. The destination is unchanged."
        )
    return CheckpointError(
        f"the conversion stopped: {error}. Finished parts are kept in {staging}; start it again to "
        "continue."
    )
