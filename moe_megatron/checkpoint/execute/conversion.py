"""What both directions of a conversion share: how it is carried out, and its report."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.checkpoint.execute import journal
from moe_megatron.checkpoint.execute.executor import Outcome, execute
from moe_megatron.checkpoint.execute.publish import publish, staging_of
from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.checkpoint.formats.view import View
from moe_megatron.checkpoint.integrity.manifest import Block
from moe_megatron.checkpoint.integrity.seal import seal
from moe_megatron.checkpoint.plan.tasks import Plan
from moe_megatron.errors import CheckpointError


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a conversion did, or would do."""

    plan: Plan
    destination: Path
    """Folder that holds the result."""
    family: str
    limits: tuple[str, ...]
    """Sentences that say what Megatron computes differently from the Hugging Face model."""
    remarks: tuple[str, ...] = ()
    """Sentences about the configuration that a person should read, such as unknown fields."""
    outcome: Outcome | None
    """None after a dry run."""
    nonfinite: tuple[str, ...] = ()
    """Tensors of the Hugging Face side that hold infinities or NaN; they are converted as is."""

    @property
    def gigabytes_per_second(self) -> float:
        """Speed of this attempt: bytes written in 10^9, without resumed ones, / seconds."""
        if self.outcome is None:
            return 0.0
        written = self.plan.nbytes - self.outcome.resumed_bytes
        return written / 1e9 / max(self.outcome.seconds, 1e-9)


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """How to carry out a conversion; the result does not depend on it."""

    workers: int | None = None
    """Number of threads; None means one per core, up to four."""
    resume: bool = True
    """Continue where an interrupted attempt stopped."""
    overwrite: bool = False
    """Replace the destination once everything is written."""
    dry_run: bool = False
    """Only make the plan."""
    progress: bool = True
    """Show progress on stderr."""


def carry_out(
    plan: Plan, target: Path, execution: Execution, before: Callable[[], object] = lambda: None
) -> Outcome | None:
    """Execute a plan, call `before`, and publish the result."""
    if execution.dry_run:
        return None
    staging = staging_of(target)
    try:
        staging.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{staging.parent} cannot be created ({error.strerror}); choose another destination."
        ) from error
    outcome = execute(
        plan,
        staging,
        workers=execution.workers,
        resume=execution.resume,
        progress=execution.progress,
    )
    seal(staging, known=_blocks(outcome), without=(journal.FILE,))
    before()
    publish(staging, target)
    return outcome


def _blocks(outcome: Outcome) -> dict[str, tuple[Block, ...]]:
    """Checksums of what was written, which fills each file from its beginning without gaps."""
    blocks: dict[str, list[Block]] = defaultdict(list)
    for file, _, nbytes, digest in sorted(outcome.ranges):
        blocks[file].append((nbytes, digest))
    return {file: tuple(of_file) for file, of_file in blocks.items()}


def tensors_at(
    views: Iterable[View], files: Mapping[int, str], folder: HfFolder
) -> tuple[str, ...]:
    """Names of the tensors of a folder that contain the beginning of one of the views."""
    starts = {(files[view.file], view.offset) for view in views}
    return tuple(
        name
        for name, tensor in folder.tensors.items()
        if any(
            file == tensor.file and tensor.offset <= offset < tensor.offset + tensor.nbytes
            for file, offset in starts
        )
    )
