"""What must be true when a campaign is over."""

import time
from collections.abc import Sequence
from pathlib import Path

from moe_megatron.chaos.campaign import Hit
from moe_megatron.chaos.equality import different_tensors
from moe_megatron.chaos.victim import Victim
from moe_megatron.checkpoint.formats.torch_dist import resolve

_LEFTOVERS = ("*.tmp", "*.partial*", ".write_test_*")
_PATIENCE_SECONDS = 10.0


def failures(victim: Victim, reference: Path, hits: Sequence[Hit], planned: int) -> list[str]:
    """What is wrong after a campaign; an empty list is a success.

    Args:
        victim: The job, at its end.
        reference: Checkpoints of the training that nobody touched.
        hits: What was done.
        planned: Number of hits that were planned.
    """
    found = [f"hit {hit.number} ({hit.harm}): {hit.failure}" for hit in hits if hit.failure]
    if len(hits) < planned:
        found.append(f"only {len(hits)} of {planned} hits were possible")
    if victim.exit_code() != 0:
        return [*found, "the training did not finish"]
    if orphans := _orphans(victim):
        found.append(f"processes are left: {', '.join(orphans)}")
    for folder, patterns in ((victim.temporary, ("*",)), (victim.run_dir, _LEFTOVERS)):
        left = sorted(path.name for pattern in patterns for path in folder.rglob(pattern))
        if left:
            found.append(f"files are left in {folder.name}: {', '.join(left[:10])}")
    ours, theirs = resolve(victim.checkpoints), resolve(reference)
    if ours.name != theirs.name:
        found.append(f"the last checkpoint is {ours.name} and not {theirs.name}")
    if differing := different_tensors(ours, theirs):
        found.append(f"{len(differing)} tensors differ, among them {differing[0]}")
    return found


def _orphans(victim: Victim) -> list[str]:
    """Processes that are still there some seconds after the end."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (left := victim.everything()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [f"{process.pid} ({process.name()})" for process in left]
