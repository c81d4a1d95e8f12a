"""Quantizes the experts of a model folder, from its path to a checked new folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.checkpoint.hub import local_folder
from moe_megatron.config.checkpoint_files import is_megatron_checkpoint
from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.files import user_path
from moe_megatron.inference.cache.policies import Key
from moe_megatron.inference.quantization import dense_and_sparse, least_squares, rtn
from moe_megatron.inference.quantization.audit import Audit, audit
from moe_megatron.inference.quantization.methods import method_of
from moe_megatron.inference.quantization.packed_folder import Sizes, Unpacked, write_packed
from moe_megatron.inference.quantization.precision import Precision, by_usage, precision
from moe_megatron.inference.usage import counts_of
from moe_megatron.telemetry.values.profile import RoutingProfile

BUILT_IN = (rtn, least_squares, dense_and_sparse)
"""Modules whose methods are known from the start."""
HOT_SHARE = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What becomes of the experts."""

    method: str = "rtn"
    """A registered method."""
    bits: int = 4
    """8, with a scale for each row, or 4."""
    group_size: int = 32
    """Of 4 bits: how many weights of a row share a scale."""
    symmetric: bool = True
    """Of 4 bits: whether 0 is in the middle of the numbers, or each group has a zero point."""
    profile: RoutingProfile | str | Path | None = None
    """With it, the most used experts of each layer get 8 bits."""
    hot_share: float = HOT_SHARE
    """How many of them, as a share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """A new folder."""

    folder: Path
    sizes: Sizes
    audit: Audit


def quantize(
    source: str | Path,
    target: str | Path,
    recipe: Recipe,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> Quantization:
    """Write a model folder whose experts have few bits, and all else as it was.

    Args:
        source: A Hugging Face folder, or a hub id.
        target: The folder to write.
        recipe: What becomes of the experts.
        overwrite: Whether a folder that is there may be replaced.
        progress: Whether progress is shown on stderr.

    Raises:
        CheckpointError: The source cannot be read or is quantized already, the target must not be
            replaced, or was not written as it must be.
        ConfigError: There is no such method or precision, or the profile is of another model.
        DataError: The profile cannot be read, or the target not be written.
        MappingError: The family is unknown.
    """
    chosen, cold = (
        method_of(recipe.method),
        precision(recipe.bits, recipe.group_size, symmetric=recipe.symmetric),
    )
    path = local_folder(source)
    if is_megatron_checkpoint(path):
        raise CheckpointError(
            f"{path} is a Megatron checkpoint, and Hugging Face folders are quantized; run "
            f"`moe-megatron convert {path} NEW_FOLDER` and give that folder."
        )
    model = Unpacked(path)
    try:
        precisions = _precisions(model, cold, recipe)
        folder = user_path(target)
        sizes = write_packed(
            model,
            folder,
            chosen,
            precisions,
            method_name=recipe.method,
            overwrite=overwrite,
            progress=progress,
        )
    finally:
        model.store.close()
    return Quantization(folder=folder, sizes=sizes, audit=audit(folder))


def _precisions(model: Unpacked, cold: Precision, recipe: Recipe) -> Mapping[Key, Precision]:
    if recipe.profile is None:
        return dict.fromkeys(model.keys, cold)
    if cold.bits == 8:
        raise ConfigError(
            "a profile gives the most used experts 8 bits, and bits (8) gives them to all; take "
            "bits 4 with a profile, or leave the profile out."
        )
    counts = counts_of(recipe.profile, model.store)
    return by_usage(model.keys, counts, Precision(8), cold, recipe.hot_share)
