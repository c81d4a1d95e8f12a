"""Verifies a conversion: structure, checksums, every weight, and the logits of both sides.

It works in both directions and compares two folders, independently of how they were made. A
difference is part of the report, not an error; errors are for folders that cannot be read.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moe_megatron.checkpoint.formats import description
from moe_megatron.checkpoint.formats.hf_folder import CONFIG, HfFolder
from moe_megatron.checkpoint.formats.own_files import given_folder
from moe_megatron.checkpoint.formats.torch_dist import TorchDist
from moe_megatron.checkpoint.integrity.check import check_folder
from moe_megatron.checkpoint.integrity.manifest import MANIFEST
from moe_megatron.checkpoint.plan.exporting import ExportOptions, plan_export
from moe_megatron.checkpoint.plan.importing import ImportOptions, check_source
from moe_megatron.checkpoint.progress import show_progress
from moe_megatron.checkpoint.verify.logits import (
    TOLERANCE,
    LogitsReport,
    compare_logits,
    random_tokens,
)
from moe_megatron.checkpoint.verify.weights import WeightsReport, compare_weights
from moe_megatron.config.checkpoint_files import METADATA, TRACKER, is_megatron_checkpoint
from moe_megatron.errors import BackendUnavailableError, CheckpointError, MappingError
from moe_megatron.families import Family, family_of
from moe_megatron.families.links import Link

_FREE_KEYS = frozenset({"dtype", "torch_dtype", "quantization_config", "transformers_version"})
"""Keys of `config.json` that a conversion may change: the types of weights are in their headers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to verify, and how."""

    logits: bool = True
    """Whether to run both sides and compare logits."""
    sequences: int = 2
    """Number of sequences of random tokens on which to run them."""
    length: int = 64
    """Tokens per sequence."""
    precision: str = "fp32"
    """"fp32", or "bf16", for which differences are reported but not judged."""
    tolerance: float = TOLERANCE
    """As `logits.TOLERANCE`."""
    progress: bool = True
    """Show progress on stderr."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The result of a verification."""

    source: Path
    converted: Path
    family: str
    structure: tuple[str, ...]
    """Sentences about structural differences; empty if every tensor has a counterpart."""
    blocks: int | None
    """Number of checksums of the result; None if it has none."""
    checksums: tuple[str, ...]
    """Sentences about files whose checksums do not match."""
    weights: WeightsReport | None
    """None if the structure differs."""
    logits: LogitsReport | None
    logits_skipped: str = ""
    """Why logits were not compared; empty if they were."""
    logits_wanted: bool = True
    """Whether they were asked for."""
    remarks: tuple[str, ...] = ()
    """Sentences about fields of `config.json` that no table knows."""
    limits: tuple[str, ...] = ()
    """Sentences about what Megatron computes differently; if any, logits are not judged."""

    @property
    def unjudged(self) -> str:
        """Why the logits of both sides say nothing about the conversion; empty if they do."""
        if self.logits is None:
            return self.logits_skipped
        if self.limits:
            return self.limits[0].removesuffix(".")
        if self.logits.precision != "fp32":
            return f"rounding dominates in {self.logits.precision}"
        return ""

    @property
    def passed(self) -> bool:
        """Whether structure, checksums, weights and (if judged) logits all agree."""
        weights = self.weights is not None and not self.weights.differences
        logits = bool(self.unjudged) or (self.logits is not None and self.logits.agree)
        return not self.structure and not self.checksums and weights and logits

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        fields = {**asdict(self), "passed": self.passed, "unjudged": self.unjudged}
        return fields | {"source": str(self.source), "converted": str(self.converted)}


def verify(
    source: str | Path, converted: str | Path, options: Options | None = None
) -> Verification:
    """Verify a conversion.

    Args:
        source: The source of the conversion: a Hugging Face folder or a Megatron checkpoint.
        converted: The result of the conversion, which is of the other kind.
        options: What to verify.

    Raises:
        CheckpointError: A folder is neither, both are of the same kind, or a file is damaged.
        MappingError: The family is unknown.
    """
    options = options or Options()
    source, converted = given_folder(source), given_folder(converted)
    to_megatron = _is_megatron(converted)
    if _is_megatron(source) == to_megatron:
        kind = "Megatron checkpoints" if to_megatron else "Hugging Face folders"
        raise CheckpointError(
            f"{source} and {converted} are both {kind}; give one of each kind, the source first."
        )
    folder = HfFolder(source if to_megatron else converted)
    with TorchDist(converted if to_megatron else source) as saved:
        family = family_of(folder.config)
        links, structure = _structure(folder, saved, family)
        weights = logits = None
        skipped = "the structure differs" if structure else ""
        result = saved.path if to_megatron else folder.path
        found = check_folder(result) if (result / MANIFEST).exists() else None
        if not structure:
            weights = _weights(folder, saved, links, to_megatron, options)
        if not structure and not options.logits:
            skipped = "this was not requested"
        elif not structure:
            logits, skipped = _logits(folder, saved, family, links, options)
    return Verification(
        source=source,
        converted=converted,
        family=family.name,
        structure=structure,
        blocks=None if found is None else found.blocks,
        checksums=() if found is None else found.problems,
        weights=weights,
        logits=logits,
        logits_skipped=skipped,
        logits_wanted=options.logits,
        remarks=family.remarks(folder.config),
        limits=family.limits(folder.config),
    )


def _is_megatron(path: Path) -> bool:
    if is_megatron_checkpoint(path):
        return True
    if (path / CONFIG).is_file():
        return False
    raise CheckpointError(
        f"{path} holds neither {CONFIG} (Hugging Face) nor {METADATA} or {TRACKER} (Megatron); "
        "give the folder of a checkpoint."
    )


def _structure(
    folder: HfFolder, saved: TorchDist, family: Family
) -> tuple[list[Link], tuple[str, ...]]:
    """The links of the model, and sentences about what does not fit them on either side."""
    problems = []
    geometry = family.geometry(folder.config, folder.tensors)
    links = family.links_of(geometry, folder.tensors)
    unpacked = family.links(geometry, fused=family.has_fused_names(folder.tensors))
    redundant = family.redundant(geometry)
    for check in (
        lambda: check_source(
            folder, links, ImportOptions(stacked=geometry.homogeneous, redundant=redundant)
        ),
        # Planning an export fails unless each tensor of the checkpoint has a counterpart.
        lambda: plan_export(saved, unpacked, ExportOptions(dtype="F32")),
    ):
        try:
            check()
        except MappingError as error:
            problems.append(str(error))
    return links, (*problems, *_config_differences(folder, saved, family))


def _config_differences(folder: HfFolder, saved: TorchDist, family: Family) -> list[str]:
    """Sentences about the keys in which `config.json` differs from the Megatron side's run."""
    base = description.base_config(saved.path)
    written = family.hf_config(description.run_of(saved.path), base, saved.tensors)
    keys = sorted((written.keys() | (folder.config.keys() if base else set())) - _FREE_KEYS)
    return [
        f"{folder.path / CONFIG} has {key} {_shown(folder.config, key)}, but the configuration "
        f"beside the Megatron checkpoint corresponds to {_shown(written, key)}."
        for key in keys
        if written.get(key) != folder.config.get(key)
    ]


def _shown(config: Mapping[str, Any], key: str) -> str:
    return repr(config[key]) if key in config else "(absent)"


def _weights(
    folder: HfFolder, saved: TorchDist, links: list[Link], to_megatron: bool, options: Options
) -> WeightsReport:
    quantization = folder.config.get("quantization_config")
    sizes = quantization.get("weight_block_size") if isinstance(quantization, dict) else None
    total = sum(tensor.nbytes for tensor in folder.tensors.values())
    with show_progress("comparing weights", total, enabled=options.progress) as advance:
        return compare_weights(
            folder,
            saved,
            links,
            to_megatron=to_megatron,
            scale_block=int(sizes[0]) if sizes else 128,
            advance=advance,
        )


def _logits(
    folder: HfFolder, saved: TorchDist, family: Family, links: list[Link], options: Options
) -> tuple[LogitsReport | None, str]:
    if family.untrained:
        return None, f"a {family.name} model does not train here: {family.untrained}"
    run = description.run_of(saved.path)
    tokens = random_tokens(run.data.vocab_size, options.sequences, options.length)
    try:
        found = compare_logits(
            folder,
            links,
            saved,
            run,
            tokens=tokens,
            precision=options.precision,
            tolerance=options.tolerance,
        )
    except BackendUnavailableError as error:
        return None, str(error)
    return found, ""
