"""The records of a run in two files, metrics.jsonl and routing.jsonl, one JSON object per line.

Each line is handed to the operating system as it is appended, so a killed process loses at most the
line it was writing (a power cut may lose more); of a line for which the disk has no room, nothing
stays. A run that resumes or rolls back first removes what came after its checkpoint, so that the
files read like those of an uninterrupted run. Readers are lazy: a file may be larger than memory.
It knows the form of lines, not what the numbers mean.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from moe_megatron.errors import DataError
from moe_megatron.files import replace_file
from moe_megatron.reading import MOST_LINE_BYTES, lines, open_regular, parse_json
from moe_megatron.telemetry.earlier_run import set_aside
from moe_megatron.telemetry.sinks.appended_file import AppendedFile
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

METRICS_FILE = "metrics.jsonl"
ROUTING_FILE = "routing.jsonl"

_BLOCK = 1 << 20  # bytes per read when reading from the end

logger = logging.getLogger(__name__)

# A line of a large model has 100 KB; its step comes first, so rewinding need not parse the rest.
_STEP_PREFIX = re.compile(rb'\{(?:"kind": "\w+", )?"step": (\d+),')


class _JsonLinesFile:
    """Appends objects to one file of the run directory; writes nothing without a directory."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._file: AppendedFile | None = None

    def start(self, run: RunInfo) -> None:
        """Opens the file and, on resume, removes the records after `run.start_step`."""
        if run.run_dir is None:
            return
        run.run_dir.mkdir(parents=True, exist_ok=True)
        path = run.run_dir / self.name
        if path.exists():
            if run.start_step:
                rewind(path, run.start_step)
            elif path.stat().st_size:
                set_aside(path)
        file = AppendedFile(path)
        file.open()
        self._file = file

    def rewind(self, run: RunInfo) -> None:
        """Removes the records after `run.start_step`, which are made again.

        Raises:
            OSError: it cannot be written.
            DataError: a line has no step.
        """
        if self._file is not None:
            self._file.close()  # the next record goes into the file that is put in its place
            rewind(self._file.path, run.start_step)

    def close(self) -> None:
        """Closes the file; later records are ignored."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, data: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.append(f"{json.dumps(data, allow_nan=False)}\n".encode())


class MetricsLog(_JsonLinesFile):
    """Sink that writes steps and evaluations to RUN/metrics.jsonl."""

    def __init__(self) -> None:
        super().__init__(METRICS_FILE)

    def step(self, record: StepRecord, routing: RoutingSnapshot | None) -> None:
        """Writes `record`."""
        self._append(record.to_json_dict())

    def evaluation(self, record: EvalRecord) -> None:
        """Writes `record`."""
        self._append(record.to_json_dict())


class RoutingLog(_JsonLinesFile):
    """Sink that writes each routing snapshot to RUN/routing.jsonl."""

    def __init__(self) -> None:
        super().__init__(ROUTING_FILE)

    def step(self, record: StepRecord, routing: RoutingSnapshot | None) -> None:
        """Writes `routing`, if the step measured it."""
        if routing is not None:
            self._append(routing.to_json_dict())

    def evaluation(self, record: EvalRecord) -> None:
        """Writes nothing: evaluations do not train routers."""


def rewind(path: Path, last_step: int) -> None:
    """Removes records of steps after `last_step` and a half-written last line.

    A temporary file is written and renamed, so a crash leaves either the old or the new content.

    Args:
        path: a file that `MetricsLog` or `RoutingLog` wrote.
        last_step: last step to keep.

    Raises:
        DataError: a line has no step; a half-written last line is removed instead.
    """
    highest = 0

    def kept_lines(file: BinaryIO) -> Iterator[bytes]:
        nonlocal highest
        for number, line in enumerate(_lines(file, path), start=1):
            if not line.endswith(b"\n"):
                if not _is_json(line):
                    logger.warning("%s:%d: removed a half-written last line", path, number)
                    return
                line += b"\n"
            step = _step_of(line, path, number)
            if step <= last_step:
                highest = max(highest, step)
                yield line

    with _open(path) as file:
        replace_file(path, kept_lines(file))
    if highest < last_step:
        logger.warning(
            "%s ends at step %d, but the run resumes after step %d; the steps in between are "
            "missing",
            path,
            highest,
            last_step,
        )


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True


def _step_of(line: bytes, path: Path, number: int) -> int:
    if match := _STEP_PREFIX.match(line):
        return int(match.group(1))
    data = _parse_line(line, path, number)
    step = data.get("step") if isinstance(data, dict) else None
    if type(step) is not int:
        raise DataError(
            f'{path}:{number}: expected an object with an integer "step"; '
            "move the file away or remove that line"
        )
    return step


def _parse_line(line: bytes, path: Path, number: int) -> object:
    try:
        data: object = parse_json(line)
    except ValueError as error:
        raise DataError(
            f"{path}:{number}: not valid JSON ({error}); move the file away or remove that line"
        ) from error
    return data


def _open(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; a training run writes it into its run directory"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; move it away") from error


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    try:
        yield from lines(file)
    except ValueError as error:
        raise DataError(f"{path}: {error}; move the file away") from error


def _read_lines[T](path: Path, parse: Callable[[object], T]) -> Iterator[T]:
    with _open(path) as file:
        for number, line in enumerate(_lines(file, path), start=1):
            if not line.endswith(b"\n") and not _is_json(line):
                logger.warning(
                    "%s:%d: ignoring a half-written last line (the run was killed or is still "
                    "writing)",
                    path,
                    number,
                )
                return
            data = _parse_line(line, path, number)
            try:
                yield parse(data)
            except DataError as error:
                raise DataError(
                    f"{path}:{number}: {error}; move the file away or remove that line"
                ) from error


def _parse_metrics(data: object) -> StepRecord | EvalRecord:
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind == "step":
        return StepRecord.from_json_dict(data)
    if kind == "eval":
        return EvalRecord.from_json_dict(data)
    raise DataError(f'expected an object whose "kind" is "step" or "eval", got {kind!r}')


def parse_metrics_line(line: bytes) -> StepRecord | EvalRecord:
    """The record of one line of a metrics.jsonl.

    Raises:
        DataError: it is malformed.
    """
    try:
        return _parse_metrics(parse_json(line))
    except ValueError as error:
        raise DataError(f"not valid JSON ({error})") from error


def read_metrics(path: Path) -> Iterator[StepRecord | EvalRecord]:
    """Yields the records of a metrics.jsonl in the order they were written.

    A half-written last line is skipped with a warning.

    Raises:
        DataError: the file is missing, or a line is malformed (the message names it).
    """
    return _read_lines(path, _parse_metrics)


def read_metrics_after(path: Path, step: int) -> Iterator[StepRecord | EvalRecord]:
    """Yields the records after `step`, newest first, without reading earlier ones.

    A half-written last line is skipped.

    Raises:
        DataError: the file is missing, or a line is malformed (the message names it).
    """
    return _read_after(path, step, _parse_metrics)


def read_routing(path: Path) -> Iterator[RoutingSnapshot]:
    """Yields the snapshots of a routing.jsonl in the order they were written.

    A half-written last line is skipped with a warning.

    Raises:
        DataError: the file is missing, or a line is malformed (the message names it).
    """
    return _read_lines(path, RoutingSnapshot.from_json_dict)


def read_routing_after(path: Path, step: int) -> Iterator[RoutingSnapshot]:
    """Yields the snapshots of steps after `step`, newest first, without reading earlier ones.

    A half-written last line is skipped.

    Raises:
        DataError: the file is missing, or a line is malformed (the message names it).
    """
    return _read_after(path, step, RoutingSnapshot.from_json_dict)


def read_routing_between(path: Path, first: int, last: int) -> Iterator[RoutingSnapshot]:
    """Yields the snapshots of a window of steps, oldest first, without reading earlier ones.

    The place of the first one is found by halving, as steps follow each other.

    Raises:
        DataError: the file is missing, or a line is malformed (the message names it).
    """
    with _open(path) as file:
        file.seek(_offset_of(file, first))
        for line in _lines(file, path):
            step = _written_step(line)
            if step is None or step > last:
                return
            yield _parsed(line, RoutingSnapshot.from_json_dict, f"{path}: step {step}")


def _offset_of(file: BinaryIO, step: int) -> int:
    """Where the first line of `step`, or of a later one, begins; or the end."""
    low, high = 0, file.seek(0, os.SEEK_END)
    while low < high:
        middle = (low + high) // 2
        file.seek(max(0, middle - 1))
        if middle and not file.readline(MOST_LINE_BYTES).endswith(b"\n"):
            high = middle  # within a line that is being written
            continue
        begin = file.tell()
        line = file.readline(MOST_LINE_BYTES)
        found = _written_step(line)
        if found is not None and found < step:
            low = begin + len(line)
        else:
            high = middle
    return low


def _written_step(line: bytes) -> int | None:
    """The step of a complete line; None if it is none."""
    match = _STEP_PREFIX.match(line) if line.endswith(b"\n") else None
    return int(match.group(1)) if match else None


def _read_after[T: (StepRecord | EvalRecord, RoutingSnapshot)](
    path: Path, step: int, parse: Callable[[object], T]
) -> Iterator[T]:
    with _open(path) as file:
        for number, line in enumerate(_lines_from_the_end(file)):
            if number == 0 and not _is_json(line):
                continue
            record = _parsed(line, parse, f"{path}: line {number + 1} from the end")
            if record.step <= step:
                return
            yield record


def _parsed[T](line: bytes, parse: Callable[[object], T], place: str) -> T:
    try:
        return parse(parse_json(line))
    except (ValueError, DataError) as error:
        raise DataError(f"{place}: {error}; move the file away or remove that line") from error


def _lines_from_the_end(file: BinaryIO) -> Iterator[bytes]:
    """The non-empty lines of a file without newlines, last line first."""
    position, rest = file.seek(0, os.SEEK_END), b""
    while position > 0:
        size = min(_BLOCK, position)
        position -= size
        file.seek(position)
        rest, *whole = (file.read(size) + rest).split(b"\n")
        if len(rest) > MOST_LINE_BYTES:
            raise DataError(f"a line has more than {MOST_LINE_BYTES:,} bytes, which none needs")
        yield from filter(None, reversed(whole))
    if rest:
        yield rest
