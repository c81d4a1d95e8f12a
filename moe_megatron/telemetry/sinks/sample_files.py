"""The samples of a run, one file each: RUN/samples/0000100.jsonl is that of step 100.

The tokens of its experts, where they are recorded, stand beside it in 0000100.tokens.jsonl. A file
appears whole or not at all. A run that resumes or rolls back removes the samples after its
checkpoint; a new run from step 0 sets those of an earlier one aside. Readers read a line at a time,
so that the layers that nobody asks for are skipped. It does not know what a sample holds.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from moe_megatron.errors import DataError
from moe_megatron.files import replace_file
from moe_megatron.reading import lines, open_regular
from moe_megatron.telemetry.earlier_run import set_aside
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.routing_sample import LayerPairs, RoutingSample, SampleHead
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot
from moe_megatron.telemetry.values.top_tokens import TopTokens

SAMPLES_FOLDER = "samples"
_SUFFIX = ".jsonl"
_TOKENS_SUFFIX = ".tokens.jsonl"


class SampleFiles:
    """Sink that writes samples into the folder of the run; without one it writes nothing."""

    name = SAMPLES_FOLDER

    def __init__(self) -> None:
        self._folder: Path | None = None

    def start(self, run: RunInfo) -> None:
        """Remove the samples after the checkpoint, or set aside those of an earlier run."""
        if run.run_dir is None:
            return
        folder = run.run_dir / SAMPLES_FOLDER
        if run.start_step == 0 and self._folder is None and sample_paths(run.run_dir):
            set_aside(folder)
        for step, path in sample_paths(run.run_dir).items():
            if step > run.start_step:
                tokens_path(path).unlink(missing_ok=True)
                path.unlink()
        self._folder = folder

    def rewind(self, run: RunInfo) -> None:
        """Remove the samples of steps that are made again."""
        self.start(run)

    def sample(self, sample: RoutingSample) -> None:
        """Write a sample.

        Raises:
            OSError: It cannot be written, or the folder of the run was removed.
        """
        if self._folder is None:
            return
        self._folder.mkdir(exist_ok=True)  # not that of the run: it would be half filled
        path = self._folder / f"{sample.head.step:07d}{_SUFFIX}"
        replace_file(path, sample.lines())
        if sample.tokens:
            replace_file(tokens_path(path), (it.line() for it in sample.tokens))

    def step(self, record: StepRecord, routing: RoutingSnapshot | None) -> None:
        """Write nothing: most steps have no sample."""

    def evaluation(self, record: EvalRecord) -> None:
        """Write nothing."""

    def close(self) -> None:
        """Nothing is open."""


def sample_paths(run_dir: Path) -> dict[int, Path]:
    """The files of the samples of a run by step, oldest first; {} without any."""
    try:
        found = list((run_dir / SAMPLES_FOLDER).iterdir())
    except OSError:
        return {}
    steps = {
        int(path.stem): path
        for path in found
        if path.suffix == _SUFFIX and path.stem.isascii() and path.stem.isdecimal()
    }
    return dict(sorted(steps.items()))


def paths_with_tokens(run_dir: Path) -> dict[int, Path]:
    """As `sample_paths`, those beside which the tokens of experts are recorded."""
    found = {path.name for path in (run_dir / SAMPLES_FOLDER).glob(f"*{_TOKENS_SUFFIX}")}
    paths = sample_paths(run_dir).items()
    return {step: path for step, path in paths if tokens_path(path).name in found}


def tokens_path(path: Path) -> Path:
    """The file of the tokens of a sample, which need not be there."""
    return path.with_name(f"{path.stem}{_TOKENS_SUFFIX}")


def read_sample_head(path: Path) -> SampleHead:
    """What a sample is of, and the balancing bias.

    Raises:
        DataError: The file is missing or damaged.
    """
    return _head(path, _lines(path))


def _head(path: Path, found: Iterator[bytes]) -> SampleHead:
    try:
        return SampleHead.of_line(next(found, b""))
    except DataError as error:
        raise _damaged(path, str(error)) from error


def read_pairs(path: Path, layers: tuple[int, ...] | None = None) -> Iterator[LayerPairs]:
    """The pairs of experts of a sample, layer by layer.

    Args:
        path: The file.
        layers: Numbers of the layers that are read; by default all.

    Raises:
        DataError: The file is missing or damaged.
    """
    found = _lines(path)
    head = _head(path, found)
    for layer, line in zip(head.layers, found, strict=False):
        if layers is None or layer in layers:
            try:
                yield LayerPairs.of_line(line, head.num_experts)
            except DataError as error:
                raise _damaged(path, str(error)) from error


def read_top_tokens(path: Path, layer: int) -> TopTokens | None:
    """The tokens of the experts of one layer of a sample; None where they were not recorded.

    Args:
        path: The file of the sample, beside which they are.
        layer: The number of the layer.

    Raises:
        DataError: A file is missing or damaged.
    """
    head, beside = read_sample_head(path), tokens_path(path)
    if layer not in head.layers or not beside.exists():
        return None
    line = next(islice(_lines(beside), head.layers.index(layer), None), b"")
    try:
        found = TopTokens.of_line(line, head.num_experts)
        if found.layer != layer:
            raise DataError(f"the line of layer {layer} is of layer {found.layer}")
    except DataError as error:
        raise _damaged(beside, str(error)) from error
    return found


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open_regular(path) as file:
            yield from lines(file)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; remove it") from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, problem: str) -> DataError:
    return DataError(f"{path}: {problem}; remove the file, or restore it from a copy")
