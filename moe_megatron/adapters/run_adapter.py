"""The adapter that a run has trained, read from its checkpoint beside the base.

Names of its tensors are those of matrices, as `config/adapter.py` says, and each is saved for one
layer and expert; what experts share is saved once, and read for each. Whatever layout trained it,
the tensors are whole here.
"""

from pathlib import Path

from moe_megatron.adapters.from_run import adapter_of
from moe_megatron.adapters.low_rank import Adapter, check_finite
from moe_megatron.checkpoint.formats import description
from moe_megatron.checkpoint.formats.box_reader import BoxReader
from moe_megatron.checkpoint.formats.torch_dist import TorchDist
from moe_megatron.config.adapter import TENSORS, is_of_adapter
from moe_megatron.config.checks import first_few
from moe_megatron.errors import CheckpointError


def read_run_adapter(path: Path) -> Adapter:
    """The adapter in a Megatron checkpoint.

    Args:
        path: The folder of an iteration, or the one around it, whose newest one is read.

    Raises:
        CheckpointError: The run trained no adapters, or the checkpoint is damaged.
    """
    with TorchDist(path) as saved, BoxReader(saved) as reader:
        run = description.run_of(saved.path)
        # Optimizer states end in the same words, after a name of their own.
        left = {key for key in saved.tensors if is_of_adapter(key) and _is_weight(key)}
        if not run.adapter.on or not left:
            raise CheckpointError(
                f"{saved.path} holds no adapter: its run trained whole matrices. Give the "
                "checkpoint of a run with adapter.rank, or convert this one (moe-megatron "
                "convert)."
            )
        shapes = {key: saved.tensors[key].shape for key in left}
        tensors = {key: reader.read(key, [0] * len(it), it) for key, it in shapes.items()}
        found = adapter_of(tensors, run.adapter, run.architecture)
        used = {run.adapter.tensor_name(place, part) for place in found for part in TENSORS}
        if lost := sorted(left - used):
            raise CheckpointError(
                f"{saved.path} holds {first_few(lost, 3)}, for which its config.yaml has no "
                "matrix; the checkpoint belongs to another configuration."
            )
    check_finite(found, saved.path)
    return found


def _is_weight(key: str) -> bool:
    return not key.startswith(("optimizer.", "chained_"))
