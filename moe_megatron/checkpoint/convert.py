"""Converts checkpoints: Hugging Face to Megatron (`import_checkpoint`) and back.

It needs no GPU, no process group and no model, and memory use does not grow with the model.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from moe_megatron.checkpoint.edit.edits import edit
from moe_megatron.checkpoint.edit.fewer_experts import FewerExperts
from moe_megatron.checkpoint.edit.selection import Model, Selection
from moe_megatron.checkpoint.edit.upcycle import Upcycling, bytes_of_expert
from moe_megatron.checkpoint.execute.conversion import Execution, Report, carry_out, tensors_at
from moe_megatron.checkpoint.execute.publish import check_apart, check_free
from moe_megatron.checkpoint.execute.room import check_room
from moe_megatron.checkpoint.formats import description, dtypes, side_files
from moe_megatron.checkpoint.formats.hf_folder import CONFIG, HfFolder
from moe_megatron.checkpoint.formats.own_files import given_folder
from moe_megatron.checkpoint.formats.recorded_types import (
    changed_dtypes,
    exported_config,
    imported_config,
    known_dtypes,
)
from moe_megatron.checkpoint.formats.torch_dist import TorchDist
from moe_megatron.checkpoint.formats.view import View
from moe_megatron.checkpoint.plan.exporting import ExportOptions, plan_export
from moe_megatron.checkpoint.plan.importing import ImportOptions, check_source, plan_import
from moe_megatron.config import CONFIG_FILE, dump_yaml
from moe_megatron.config.checkpoint_files import HF_FOLDER, TRACKER, read_tracker
from moe_megatron.config.mapping import from_mapping
from moe_megatron.errors import CheckpointError
from moe_megatron.families import Family, Geometry, family_of
from moe_megatron.families.choice import check_expressed
from moe_megatron.files import replace_file
from moe_megatron.platform.collection import without_collection
from moe_megatron.text.folder import has_tokenizer

__all__ = ["Execution", "Report", "export_checkpoint", "import_checkpoint"]

_ITERATION = "release"
_GROWTH = {"BF16": ("bf16", "four"), "F16": ("fp16", "four"), "F32": ("fp32", "eight")}
"""Types as users call them, and how many times the space of 4-bit weights they take, about."""


@without_collection()
def import_checkpoint(
    source: str | Path,
    destination: str | Path,
    *,
    selection: Selection | None = None,
    experts: FewerExperts | None = None,
    upcycling: Upcycling | None = None,
    dtype: str | None = None,
    execution: Execution | None = None,
) -> Report:
    """Convert a Hugging Face model folder to a Megatron checkpoint.

    Args:
        source: Folder with `config.json` and `*.safetensors`.
        destination: Folder of checkpoints, in which `release` and the tracker file that names it
            are written; it can be given to `--load` with any parallel sizes.
        selection: Layers and experts to import; None imports all.
        experts: `KeepMostUsed` or `MergeLeastUsed`, with the number of experts to keep.
        upcycling: How to make experts from the MLPs of a dense model.
        dtype: bf16, fp16 or fp32; None keeps the type of each tensor.
        execution: Workers, resuming, overwriting, dry run.

    Raises:
        MappingError: The family is unknown, or tensors have no counterpart on the other side.
        CheckpointError: The source is damaged, or the destination cannot be written.
    """
    execution = execution or Execution()
    folder = HfFolder(given_folder(source))
    whole, options = _whole_model(folder, dtype)
    remarks = (*whole.family.remarks(folder.config), *_about_types(folder, whole, options.dtype))
    root = given_folder(destination)
    target = root / _ITERATION
    if upcycling is not None:
        kinds = {options.dtype} if options.dtype else {it.dtype for it in folder.tensors.values()}
        item, layers = min(map(dtypes.item_size, kinds)), selection.layers if selection else None
        expert_bytes = bytes_of_expert(whole, upcycling, layers, item)
        check_room(target, upcycling.num_experts, expert_bytes)
    model = edit(
        whole,
        folder,
        selection=selection or Selection(),
        experts=experts,
        upcycling=upcycling,
        dtype=options.dtype,
    )
    check_apart(root, folder.path)
    options = replace(
        options,
        stacked=model.geometry.homogeneous,
        arguments=_arguments(model.geometry),
        tables=(
            *_notes(folder, model, target, options),
            *side_files.to_megatron(folder.path, profile=model is whole),
        ),
    )
    _check_root(root, overwrite=execution.overwrite)
    # The tracker is written before the folder is published: a kill in between leaves nothing that
    # can be loaded, and the next attempt finishes. The other way round, a complete folder without a
    # tracker would remain, and the next attempt would refuse to overwrite it.
    write_tracker = partial(replace_file, root / TRACKER, [_ITERATION.encode()])
    plan = plan_import(folder, model.links, options)
    outcome = carry_out(plan, target, execution, before=write_tracker)
    moves = [] if outcome is None else [move for task in outcome.nonfinite for move in task.moves]
    sources = {number: source.path.name for number, source in enumerate(plan.sources)}
    return Report(
        plan=plan,
        destination=target,
        family=model.family.name,
        limits=model.family.limits(model.config),
        remarks=remarks,
        outcome=outcome,
        nonfinite=tensors_at(
            [move.view for move in moves if isinstance(move.source, View)], sources, folder
        ),
    )


def _whole_model(folder: HfFolder, dtype: str | None) -> tuple[Model, ImportOptions]:
    """The model of a folder before any edit, and how its tensors are read."""
    family = family_of(folder.config)
    _refuse_packed(folder, family)
    geometry = family.geometry(folder.config, folder.tensors)
    links = family.links_of(geometry, folder.tensors)
    options = ImportOptions(
        stacked=geometry.homogeneous,
        redundant=family.redundant(geometry),
        dtype=None if dtype is None else dtypes.parse(dtype),
        scale_block=_scale_block(folder.config),
    )
    check_source(folder, links, options)
    config = imported_config(folder, links, options.dtype)
    return Model(family=family, config=config, geometry=geometry, links=links), options


def _about_types(folder: HfFolder, model: Model, dtype: str | None) -> tuple[str, ...]:
    """A sentence on weights that are multiplied out, which no export packs again."""
    if not model.family.has_packed_names(folder.tensors):
        return ()
    name, times = _GROWTH[dtype or "BF16"]
    return (
        f"its 4-bit weights (MXFP4) are multiplied out to {name}, which takes {times} times the "
        f"space; an export of the result stays {name}.",
    )


def _notes(
    folder: HfFolder, model: Model, target: Path, options: ImportOptions
) -> tuple[tuple[str, Callable[[], bytes]], ...]:
    """Files beside the weights: the run configuration, config.json, and what an export restores."""
    values = model.family.run_config(model.config, model.geometry)
    if has_tokenizer(folder.path):
        values["data"]["tokenizer"] = str(target.absolute() / HF_FOLDER)
    run = from_mapping(values)
    origin = {
        "fused": family_of(folder.config).has_fused_names(folder.tensors),
        "dtypes": {} if options.dtype else changed_dtypes(folder, model.links),
    }
    return (
        (CONFIG_FILE, lambda: dump_yaml(run).encode()),
        (description.BASE_CONFIG, lambda: _json(model.config)),
        (description.ORIGIN, lambda: _json(origin)),
    )


@without_collection()
def export_checkpoint(
    source: str | Path,
    destination: str | Path,
    *,
    fused: bool | None = None,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
    base_alone: bool = False,
    execution: Execution | None = None,
) -> Report:
    """Convert a Megatron checkpoint to a Hugging Face model folder.

    Args:
        source: An `iter_*` folder, or the folder around it, whose newest iteration is exported.
        destination: The folder to write.
        fused: Whether to write experts fused, as transformers 5 does; None writes them as they
            were imported, else one by one, which every version reads.
        dtype: bf16, fp16 or fp32; None keeps the type of each tensor.
        max_shard_bytes: Largest size of a file; None chooses between 1 and 5 GB.
        base_alone: Whether adapters in the checkpoint are left out; else there must be none.
        execution: Workers, resuming, overwriting, dry run.

    Raises:
        MappingError: No family fits, or tensors have no counterpart on the other side.
        CheckpointError: The source is damaged, or the destination cannot be written.
    """
    execution = execution or Execution()
    target = given_folder(destination)
    check_apart(target, given_folder(source))
    wanted = None if dtype is None else dtypes.parse(dtype)
    with TorchDist(given_folder(source)) as saved:
        run = description.run_of(saved.path)
        description.check_whole(saved.path, run)
        if run.adapter.on and not base_alone:
            raise CheckpointError(
                f"{saved.path} holds adapters beside its base, and a model of Hugging Face has no "
                "place for both: moe-megatron adapter merge writes one model of them, and "
                "moe-megatron adapter export the adapter alone."
            )
        base, origin = description.base_config(saved.path), description.origin(saved.path)
        family = description.family_of_folder(saved.path)
        config = family.hf_config(run, base, saved.tensors)
        geometry = family.geometry(config, saved.tensors)
        layout = bool(origin.get("fused")) if fused is None else fused
        links = family.links(geometry, fused=layout)
        check_expressed(run, family, config, saved.tensors)
        config = exported_config(config, saved, wanted)
        options = ExportOptions(
            dtype=wanted,
            dtypes=known_dtypes(origin),
            max_shard_bytes=max_shard_bytes,
            tables=(
                *side_files.to_hugging_face(saved.path),
                (CONFIG, lambda: _json(config)),
            ),
        )
        check_free(target, overwrite=execution.overwrite)
        plan = plan_export(saved, links, options)
        outcome = carry_out(plan, target, execution)
    written = [] if outcome is None else [p.target for t in outcome.nonfinite for p in t.moves]
    targets = {number: file.name for number, file in enumerate(plan.targets)}
    return Report(
        plan=plan,
        destination=target,
        family=family.name,
        limits=family.limits(config),
        remarks=family.unwritten(geometry),
        outcome=outcome,
        nonfinite=tensors_at(written, targets, HfFolder(target)) if written else (),
    )


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _check_root(root: Path, *, overwrite: bool) -> None:
    """Refuse a folder with checkpoints of a run: an import starts at step 0 and is none of them."""
    check_free(root / _ITERATION, overwrite=overwrite)
    try:
        named = read_tracker(root)
    except FileNotFoundError:
        return
    except OSError as error:
        named = f"unreadable: {error.strerror}"
    if named != _ITERATION and not overwrite:
        raise CheckpointError(
            f"{root} holds the checkpoints of a run ({TRACKER}); choose an empty folder."
        )


def _refuse_packed(folder: HfFolder, family: Family) -> None:
    if family.has_packed_names(folder.tensors):
        return
    packed = next((name for name in folder.tensors if name.endswith("_blocks")), None)
    if packed is not None:
        raise CheckpointError(
            f"{folder.path}: {packed} holds 4-bit weights (MXFP4), which cannot be read; save the "
            "model dequantised (transformers: Mxfp4Config(dequantize=True)) and convert that."
        )


def _scale_block(config: Mapping[str, Any]) -> int:
    quantization = config.get("quantization_config")
    size = quantization.get("weight_block_size") if isinstance(quantization, dict) else None
    if size is None:
        return 128
    if not isinstance(size, list) or len(set(size)) != 1 or not isinstance(size[0], int):
        raise CheckpointError(
            f"config.json describes quantised weights in blocks of {size}, but only square blocks, "
            "such as [128, 128], are supported; convert a dequantised copy."
        )
    return size[0]


def _arguments(geometry: Geometry) -> dict[str, Any]:
    """The arguments that Megatron compares when it loads."""
    return {
        "num_layers": geometry.layers,
        "hidden_size": geometry.hidden,
        "num_attention_heads": geometry.heads,
        "add_position_embedding": True,  # obsolete: true for any kind of positions
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
    }
