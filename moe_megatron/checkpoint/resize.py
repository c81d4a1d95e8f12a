"""Changes the number of experts of a Megatron checkpoint, which a run then resumes.

    change_experts("runs/first/checkpoints", "grown", Grow(num_experts=16))

The result is a checkpoint of the same step: weights, optimizer, random states and the place in the
data are carried over. It needs no GPU, no process group and no model.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from moe_megatron.checkpoint.edit.pool_change import (
    Change,
    Grow,
    changed_experts,
    what_is_kept,
)
from moe_megatron.checkpoint.edit.router_rows import router_rows
from moe_megatron.checkpoint.execute.conversion import Execution, Report, carry_out
from moe_megatron.checkpoint.execute.publish import check_apart, check_free
from moe_megatron.checkpoint.execute.room import check_room
from moe_megatron.checkpoint.formats import description, side_files
from moe_megatron.checkpoint.formats.own_files import given_folder
from moe_megatron.checkpoint.formats.torch_dist import TorchDist
from moe_megatron.checkpoint.plan.resizing import Resizing, bytes_of_experts, plan_resizing
from moe_megatron.checkpoint.routers import saved_router
from moe_megatron.config import CONFIG_FILE, dump_yaml
from moe_megatron.config.checkpoint_files import TRACKER, step_of
from moe_megatron.errors import CheckpointError
from moe_megatron.families.links import router_shapes
from moe_megatron.files import replace_file
from moe_megatron.platform.collection import without_collection


@without_collection()
def change_experts(
    source: str | Path,
    destination: str | Path,
    change: Change,
    *,
    execution: Execution | None = None,
) -> Report:
    """Write a checkpoint with more or fewer experts.

    Args:
        source: An `iter_*` folder, or the folder around it, whose newest step is taken.
        destination: Folder of checkpoints to write, for `--load`.
        change: `Grow`, `KeepMostUsed` or `MergeLeastUsed`.
        execution: Workers, resuming, overwriting, dry run.

    Returns:
        What was done; its remarks say how far the function is kept.

    Raises:
        CheckpointError: The change does not fit the model, the source is damaged, or the
            destination cannot be written.
        DataError: The routing profile cannot be read.
    """
    execution = execution or Execution()
    root = given_folder(destination)
    with TorchDist(given_folder(source)) as saved:
        folder = saved.path
        check_apart(root, folder)
        run = description.run_of(folder)
        description.check_whole(folder, run)
        if run.states_apart:
            raise CheckpointError(
                f"{folder} was saved by a run that froze parameters, whose optimizer knows some "
                "experts alone; change the number of experts of a training of all of them, or of "
                "the weights: export them with moe-megatron convert, and import them with "
                "--keep-experts or --merge-experts."
            )
        model = run.architecture
        target = root / folder.name
        if isinstance(change, Grow) and model.moe.num_experts:
            share = bytes_of_experts(saved) // model.moe.num_experts
            check_room(target, change.num_experts, share)
        moe, layers = changed_experts(
            model, change, folder, lambda layer: saved_router(saved, layer, model)
        )
        check_free(target, overwrite=execution.overwrite)
        grows = isinstance(change, Grow)
        shapes = {key: tensor.shape for key, tensor in saved.tensors.items()}
        plan = plan_resizing(
            saved,
            Resizing(
                layers=layers,
                rows=router_rows(model.moe, model.model.hidden_size, router_shapes(shapes)),
                experts=model.moe.num_experts or 0,
                decoder_layers=model.model.num_layers,
                noise=change.noise if isinstance(change, Grow) else 0.0,
                seed=change.seed if isinstance(change, Grow) else 0,
                tables=(
                    (CONFIG_FILE, lambda: dump_yaml(replace(run, moe=moe)).encode()),
                    *side_files.beside(folder),
                ),
            ),
        )
        step = step_of(folder)
        text = folder.name if step is None else str(step)
        write_tracker = partial(replace_file, root / TRACKER, [text.encode()])
        outcome = carry_out(plan, target, execution, before=write_tracker)
    return Report(
        plan=plan,
        destination=target,
        family="grown" if grows else "shrunk",
        limits=(),
        remarks=(what_is_kept(model.moe, moe, change),),
        outcome=outcome,
    )
