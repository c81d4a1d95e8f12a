"""Converts checkpoints: Hugging Face to Megatron (`import_checkpoint`) and back.

It needs no GPU, no process group and no model, and memory use does not grow with the model.
"""

import gc
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from moe_megatron.checkpoint.edit.edits import edit
from moe_megatron.checkpoint.edit.fewer_experts import FewerExperts
from moe_megatron.checkpoint.edit.selection import Model, Selection
from moe_megatron.checkpoint.edit.upcycle import Upcycling
from moe_megatron.checkpoint.execute.executor import Outcome, execute
from moe_megatron.checkpoint.execute.publish import check_free, publish, staging_of
from moe_megatron.checkpoint.formats import byte_ranges, description, dtypes, side_files
from moe_megatron.checkpoint.formats.hf_folder import CONFIG, HfFolder
from moe_megatron.checkpoint.formats.torch_dist import TRACKER, TorchDist
from moe_megatron.checkpoint.formats.view import View
from moe_megatron.checkpoint.plan.exporting import ExportOptions, plan_export
from moe_megatron.checkpoint.plan.importing import ImportOptions, check_source, plan_import
from moe_megatron.checkpoint.plan.tasks import Plan
from moe_megatron.config import CONFIG_FILE, dump_yaml
from moe_megatron.config.mapping import from_mapping
from moe_megatron.errors import CheckpointError
from moe_megatron.families import Geometry, family_of
from moe_megatron.families.links import Link
from moe_megatron.files import replace_file

CHECKSUMS = "checksums.json"
_ITERATION = "release"
_TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a conversion did, or would do."""

    plan: Plan
    destination: Path
    """Folder that holds the result."""
    family: str
    limits: tuple[str, ...]
    """Sentences that say what Megatron computes differently from the Hugging Face model."""
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


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Switch off cyclic garbage collection inside the context; it can also be a decorator.

    A plan for thousands of tensors is hundreds of thousands of small objects without a cycle among
    them. Creating them would trigger collections, each of which walks everything that torch has
    loaded and finds nothing; these take half of the planning time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_garbage_collection()
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
    folder = HfFolder(_folder(source))
    family = family_of(folder.config)
    _refuse_packed(folder)
    geometry = family.geometry(folder.config, folder.tensors)
    fused = family.has_fused_names(folder.tensors)
    links = family.links(geometry, fused=fused)
    options = ImportOptions(
        stacked=geometry.homogeneous,
        ignored=family.ignorable(geometry),
        dtype=None if dtype is None else dtypes.parse(dtype),
        scale_block=_scale_block(folder.config),
    )
    check_source(folder, links, options)
    config = _imported_config(folder, links, options.dtype)
    whole = Model(family=family, config=config, geometry=geometry, links=links)
    model = edit(
        whole,
        folder,
        selection=selection or Selection(),
        experts=experts,
        upcycling=upcycling,
        dtype=options.dtype,
    )
    family, config, geometry, links = model.family, model.config, model.geometry, model.links
    root = Path(destination).expanduser()
    target = root / _ITERATION
    values = family.run_config(config, geometry)
    if side_files.has_tokenizer(folder.path):
        values["data"]["tokenizer"] = str(target.absolute() / side_files.HF_FOLDER)
    run = from_mapping(values)
    origin = {"fused": fused, "dtypes": _changed_dtypes(folder, links, options)}
    options = replace(
        options,
        stacked=geometry.homogeneous,
        arguments=_arguments(geometry),
        tables=(
            (CONFIG_FILE, lambda: dump_yaml(run).encode()),
            (description.BASE_CONFIG, lambda: _json(config)),
            (description.ORIGIN, lambda: _json(origin)),
            *side_files.to_megatron(folder.path, profile=model is whole),
        ),
    )
    _check_root(root, overwrite=execution.overwrite)
    # The tracker is written before the folder is published: a kill in between leaves nothing that
    # can be loaded, and the next attempt finishes. The other way round, a complete folder without a
    # tracker would remain, and the next attempt would refuse to overwrite it.
    write_tracker = partial(replace_file, root / TRACKER, [_ITERATION.encode()])
    plan = plan_import(folder, links, options)
    outcome = _carry_out(plan, target, execution, before=write_tracker)
    sources = {number: source.path.name for number, source in enumerate(plan.sources)}
    read = (
        []
        if outcome is None
        else [p.view for t in outcome.nonfinite for p in t.moves if isinstance(p.source, View)]
    )
    return Report(
        plan=plan,
        destination=target,
        family=family.name,
        limits=family.limits(config),
        outcome=outcome,
        nonfinite=_tensors_at(read, sources, folder),
    )


@_without_garbage_collection()
def export_checkpoint(
    source: str | Path,
    destination: str | Path,
    *,
    fused: bool | None = None,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
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
        execution: Workers, resuming, overwriting, dry run.

    Raises:
        MappingError: No family fits, or tensors have no counterpart on the other side.
        CheckpointError: The source is damaged, or the destination cannot be written.
    """
    execution = execution or Execution()
    target = Path(destination).expanduser()
    wanted = None if dtype is None else dtypes.parse(dtype)
    with TorchDist(_folder(source)) as saved:
        run = description.run_of(saved.path)
        base, origin = description.base_config(saved.path), description.origin(saved.path)
        family = description.family_of_folder(saved.path)
        config = family.hf_config(run, base, saved.tensors)
        geometry = family.geometry(config, saved.tensors)
        layout = bool(origin.get("fused")) if fused is None else fused
        links = family.links(geometry, fused=layout)
        config = _exported_config(config, saved, wanted)
        options = ExportOptions(
            dtype=wanted,
            dtypes=_known_dtypes(origin),
            max_shard_bytes=max_shard_bytes,
            tables=(
                *side_files.to_hugging_face(saved.path),
                (CONFIG, lambda: _json(config)),
            ),
        )
        check_free(target, overwrite=execution.overwrite)
        plan = plan_export(saved, links, options)
        outcome = _carry_out(plan, target, execution)
    written = [] if outcome is None else [p.target for t in outcome.nonfinite for p in t.moves]
    targets = {number: file.name for number, file in enumerate(plan.targets)}
    return Report(
        plan=plan,
        destination=target,
        family=family.name,
        limits=family.limits(config),
        outcome=outcome,
        nonfinite=_tensors_at(written, targets, HfFolder(target)) if written else (),
    )


def _carry_out(
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
    ranges = {"algorithm": byte_ranges.DEFAULT, "ranges": outcome.ranges}
    (staging / CHECKSUMS).write_bytes(_json(ranges, indent=None))
    before()
    publish(staging, target)
    return outcome


def _tensors_at(
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


def _folder(path: str | Path) -> Path:
    return Path(path).expanduser()


def _json(value: object, indent: int | None = 2) -> bytes:
    return (json.dumps(value, indent=indent) + "\n").encode()


def _check_root(root: Path, *, overwrite: bool) -> None:
    """Refuse a folder with checkpoints of a run: an import starts at step 0 and is none of them."""
    check_free(root / _ITERATION, overwrite=overwrite)
    tracker = root / TRACKER
    if tracker.is_file() and tracker.read_bytes().strip() != _ITERATION.encode() and not overwrite:
        raise CheckpointError(
            f"{root} holds the checkpoints of a run ({TRACKER}); choose an empty folder."
        )


def _refuse_packed(folder: HfFolder) -> None:
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


def _imported_config(folder: HfFolder, links: Sequence[Link], dtype: str | None) -> dict[str, Any]:
    """The configuration of the folder with the type that the weights will have."""
    config = dict(folder.config)
    quantised = any(
        folder.tensors[block.name].dtype in dtypes.EIGHT_BIT_FLOATS
        for link in links
        for block in link.blocks
    )
    if quantised:
        config.pop("quantization_config", None)
    return _with_dtype(config, dtype or "BF16") if quantised or dtype else config


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    return config | {key: _TORCH_NAMES[dtype]}


def _changed_dtypes(
    folder: HfFolder, links: Sequence[Link], options: ImportOptions
) -> dict[str, str]:
    """Original types of the tensors that Megatron requires in another type."""
    return {
        block.name: folder.tensors[block.name].dtype
        for link in links
        if link.dtype is not None and options.dtype is None
        for block in link.blocks
        if folder.tensors[block.name].dtype != link.dtype
    }


def _known_dtypes(origin: Mapping[str, Any]) -> dict[str, str]:
    found = origin.get("dtypes")
    if not isinstance(found, dict):
        return {}
    return {str(k): v for k, v in found.items() if isinstance(v, str) and v in dtypes.FLOATS}


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


def _exported_config(config: dict[str, Any], saved: TorchDist, dtype: str | None) -> dict[str, Any]:
    """The configuration with the type that the exported weights have."""
    embedding = saved.tensors.get("embedding.word_embeddings.weight")
    if dtype is None and embedding is not None and config.keys() & {"dtype", "torch_dtype"}:
        dtype = embedding.dtype
    return config if dtype is None else _with_dtype(config, dtype)
