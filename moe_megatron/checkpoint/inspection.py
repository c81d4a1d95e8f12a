"""Describes a checkpoint from its headers: family, parameters, types, layout, routing.

It reads no weights and executes no code that a file names. It does not compare or convert.
"""

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from moe_megatron.checkpoint.formats import description
from moe_megatron.checkpoint.formats.hf_folder import CONFIG, HfFolder
from moe_megatron.checkpoint.formats.own_files import given_folder
from moe_megatron.checkpoint.formats.torch_dist import SavedTensor, TorchDist
from moe_megatron.checkpoint.integrity.manifest import MANIFEST
from moe_megatron.checkpoint.plan.importing import ImportOptions, check_source
from moe_megatron.config import CONFIG_FILE, MoEConfig, RunConfig, load_config
from moe_megatron.config.checkpoint_files import METADATA, TRACKER, is_megatron_checkpoint
from moe_megatron.errors import CheckpointError, MoEError
from moe_megatron.families import family_of
from moe_megatron.telemetry.values.profile import PROFILE_FILE, RoutingProfile

_OPTIMIZER = re.compile(r"(^|\.)optimizer\.")
_EXPERT = ".mlp.experts."


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What is known about a checkpoint."""

    path: Path
    format: str
    """"hugging_face" or "torch_dist"."""
    family: str | None
    """Name of the model family; None for a Megatron checkpoint that fits none."""
    parameters: int
    """Number of all weights; a tied embedding counts once."""
    active_parameters: int
    """parameters - expert parameters * (1 - top_k / experts): those that one token uses."""
    layers: int | None
    experts: int
    """Number of experts of an MoE layer; 0 for a dense model."""
    top_k: int
    router: str | None
    """Its name, options that are not the usual ones, and the start of the hash of a user's file;
    None for a dense model, and where no configuration says it."""
    expert: str | None
    """The kind of expert, in the same form."""
    dtypes: tuple[str, ...]
    files: int
    nbytes: int
    """Total size of the files with weights."""
    iteration: int | None = None
    has_optimizer: bool = False
    routing: str | None = None
    """One line about the routing profile beside the weights."""
    checksums: bool = False
    """Whether checksums of all files are beside the weights."""
    limits: tuple[str, ...] = ()
    """Sentences on what Megatron computes differently from this model, and on unknown fields."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {**fields, "path": str(self.path)}


def inspect_checkpoint(path: Path) -> Inspection:
    """Describe a Hugging Face or Megatron checkpoint.

    Args:
        path: A Hugging Face model folder, an `iter_*` folder, or the folder around it.

    Raises:
        CheckpointError: It is neither, or is damaged; the message names the file.
        MappingError: The family is unknown, or the tensors are not those of the family.
    """
    path = given_folder(path)
    if is_megatron_checkpoint(path):
        return _inspect_torch_dist(path)
    if (path / CONFIG).is_file():
        return _inspect_hugging_face(path)
    raise CheckpointError(
        f"{path} holds neither {CONFIG} (Hugging Face) nor {METADATA} or {TRACKER} (Megatron); "
        "give the folder of a checkpoint."
    )


def _inspect_hugging_face(path: Path) -> Inspection:
    folder = HfFolder(path)
    family = family_of(folder.config)
    geometry = family.geometry(folder.config, folder.tensors)
    links = family.links_of(geometry, folder.tensors)
    redundant = family.redundant(geometry)
    options = ImportOptions(stacked=geometry.homogeneous, redundant=redundant)
    check_source(folder, links, options, contents=False)
    total = sum(prod(link.shape) for link in links)
    in_experts = sum(prod(link.shape) for link in links if link.expert is not None)
    files = {tensor.file for tensor in folder.tensors.values()}
    router, expert = _choices(geometry.architecture.moe if geometry.experts else None)
    return Inspection(
        path=path,
        format="hugging_face",
        family=family.name,
        parameters=total,
        active_parameters=_active(total, in_experts, geometry.experts, geometry.top_k),
        layers=geometry.layers,
        experts=geometry.experts,
        top_k=geometry.top_k,
        router=router,
        expert=expert,
        dtypes=tuple(sorted({tensor.dtype for tensor in folder.tensors.values()})),
        files=len(files),
        nbytes=sum((path / file).stat().st_size for file in files),
        routing=_routing(path),
        checksums=(path / MANIFEST).is_file(),
        limits=(*family.limits(folder.config), *family.remarks(folder.config)),
    )


def _inspect_torch_dist(path: Path) -> Inspection:
    with TorchDist(path) as saved:
        state = saved.common_state()
    weights = [t for key, t in saved.tensors.items() if _is_weight(key, t)]
    run = _run_config(saved.path)
    experts = (run.moe.num_experts or 0) if run else _expert_axis(weights)
    top_k = run.moe.top_k if run and experts else 0
    distinct = {_payload(tensor): tensor for tensor in weights}.values()
    total = sum(prod(tensor.shape) for tensor in distinct)
    in_experts = sum(prod(t.shape) for t in distinct if _EXPERT in t.key)
    iteration = state.get("iteration")
    router, expert = _choices(run.moe if run and experts else None)
    return Inspection(
        path=saved.path,
        format="torch_dist",
        family=_family(saved.path),
        parameters=total,
        active_parameters=_active(total, in_experts, experts, top_k),
        layers=run.model.num_layers if run else None,
        experts=experts,
        top_k=top_k,
        router=router,
        expert=expert,
        dtypes=tuple(sorted({tensor.dtype for tensor in weights})),
        files=len(saved.files),
        nbytes=sum((saved.path / file).stat().st_size for file in saved.files),
        iteration=iteration if isinstance(iteration, int) else None,
        has_optimizer=any(_OPTIMIZER.search(key) for key in saved.tensors),
        routing=_routing(saved.path),
        checksums=(saved.path / MANIFEST).is_file(),
        limits=_limits(saved.path),
    )


def _choices(moe: MoEConfig | None) -> tuple[str | None, str | None]:
    """Router and kind of expert; None for both where there are none."""
    if moe is None:
        return None, None
    from moe_megatron.experts import described  # imports torch, which is slow

    return described(moe.router), described(moe.expert)


def _active(total: int, in_experts: int, experts: int, top_k: int) -> int:
    if not experts or not top_k:
        return total
    return total - in_experts + in_experts * top_k // experts


def _is_weight(key: str, tensor: SavedTensor) -> bool:
    floating = tensor.dtype.startswith(("F", "BF"))
    return floating and _OPTIMIZER.search(key) is None and "rng_state" not in key


def _payload(tensor: SavedTensor) -> Any:
    """Position of a tensor's first byte, which identifies it: two keys may name the same bytes."""
    starts = [(chunk.record.file, chunk.record.offset) for chunk in tensor.chunks]
    return min(starts, default=tensor.key)


def _expert_axis(weights: list[SavedTensor]) -> int:
    """Number of experts, from the shape of weights: [layers, experts, ...] or [experts, ...]."""
    shapes = [t.shape for t in weights if t.key.endswith(f"{_EXPERT}experts.linear_fc1.weight")]
    return shapes[0][-3] if shapes and len(shapes[0]) >= 3 else 0


def _run_config(folder: Path) -> RunConfig | None:
    try:
        return load_config(folder / CONFIG_FILE)  # its router may be known to another program
    except MoEError:
        return None


def _family(folder: Path) -> str | None:
    try:
        return description.family_of_folder(folder).name
    except MoEError:
        return None


def _limits(folder: Path) -> tuple[str, ...]:
    """What Megatron computes differently from the model that a checkpoint was imported from."""
    try:
        base = description.base_config(folder)
        return () if base is None else family_of(base).limits(base)
    except MoEError:
        return ()


def _routing(folder: Path) -> str | None:
    path = folder / PROFILE_FILE
    if not path.is_file():
        return None
    profile = RoutingProfile.load(path)
    if not profile.tokens:
        return "no tokens yet"
    dead = int((profile.tokens_per_expert == 0).sum())
    return (
        f"{profile.steps:,} steps, {profile.tokens:,} tokens, {len(profile.layers)} MoE layers, "
        f"max/mean load {float(profile.imbalance.max()):.2f}, {dead} dead experts"
    )
