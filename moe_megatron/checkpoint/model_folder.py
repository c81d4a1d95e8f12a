"""`MoEModel` as a Hugging Face folder or a Megatron checkpoint, and back: weights in memory.

`MoEModel` computes what its own configuration can say. A model that needs more is refused, with
what it needs; converting it for training in Megatron needs no `MoEModel`.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from moe_megatron.checkpoint.convert import Execution, import_checkpoint
from moe_megatron.checkpoint.edit.selection import without_prediction
from moe_megatron.checkpoint.execute.publish import check_free, publish, staging_of
from moe_megatron.checkpoint.formats import description
from moe_megatron.checkpoint.formats.hf_folder import CONFIG, HfFolder
from moe_megatron.checkpoint.formats.torch_dist import METADATA, TRACKER, TorchDist, matrix_size
from moe_megatron.checkpoint.hub import local_folder
from moe_megatron.checkpoint.matrices import read_matrix, read_saved_matrix
from moe_megatron.checkpoint.model_rows import model_links
from moe_megatron.checkpoint.plan.importing import ImportOptions, check_source
from moe_megatron.config import DataConfig, RunConfig
from moe_megatron.config.mapping import from_mapping
from moe_megatron.errors import CheckpointError
from moe_megatron.families import Family, family_of, family_of_run
from moe_megatron.families.links import Link, Transform
from moe_megatron.model import extras
from moe_megatron.model.storage import Architecture

if TYPE_CHECKING:
    from torch import Tensor

_PREDICTION = "mtp-num-layers"
_CARRIED = "hugging_face."
Place = tuple[str, int | None, int | None]
"""Key, layer and expert of a Megatron matrix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """What a `MoEModel` is built from."""

    architecture: Architecture
    tensors: dict[str, "Tensor"]
    """Its parameters, by name."""
    left_out: tuple[str, ...] = field(default=())
    """What the folder holds besides, as sentences."""


def load(source: str | Path, *, expected: str | None = None) -> LoadedModel:
    """Read the weights of a Hugging Face model or of a Megatron checkpoint.

    Args:
        source: A folder, or an id of the Hub.
        expected: Name of the family that the caller wants; None: any.

    Raises:
        CheckpointError: It is no such checkpoint, of another family, or a model that `MoEModel`
            does not compute; says what it would need.
        MappingError: Its family has no table, or its tensors are not those of its family.
    """
    path = local_folder(source)
    if (path / METADATA).is_file() or (path / TRACKER).is_file():
        return _load_megatron(path, expected)
    return _load_hugging_face(path, expected)


def _load_hugging_face(path: Path, expected: str | None) -> LoadedModel:
    folder = HfFolder(path)
    family = family_of(folder.config)
    _check_family(path, family, expected)
    geometry = family.geometry(folder.config, folder.tensors)
    links = family.links(geometry, fused=family.fused_names(folder.tensors))
    ignored = family.ignorable(geometry)
    check_source(folder, links, ImportOptions(stacked=geometry.homogeneous, ignored=ignored))
    run = from_mapping(family.run_config(folder.config, geometry))
    _check_computed(path, run, family.limits(folder.config))
    left_out: tuple[str, ...] = ()
    if geometry.mtp_layers:
        left_out = (f"{geometry.mtp_layers} layer(s) of multi-token prediction",)
    by_place = {_place(link): link for link in without_prediction(links, geometry)}
    architecture = _architecture(run, geometry.vocab)
    wanted = model_links(architecture)
    _check_places(path, {_place(link) for link in wanted}, by_place)

    def matrix(link: Link) -> "Tensor":
        return read_matrix(by_place[_place(link)], folder)

    return LoadedModel(
        architecture=architecture,
        tensors=_scattered(wanted, matrix),
        left_out=left_out,
    )


def _load_megatron(path: Path, expected: str | None) -> LoadedModel:
    with TorchDist(path) as saved:
        run = description.run_of(saved.path)
        base = description.base_config(saved.path)
        limits: tuple[str, ...] = ()
        if expected is not None or base is not None:
            family = description.family_of_folder(saved.path)
            _check_family(path, family, expected)
            limits = () if base is None else family.limits(base)
        _check_computed(path, run, limits)
        vocab = run.data.vocab_size or saved.tensors["embedding.word_embeddings.weight"].shape[0]
        architecture = _architecture(run, vocab)
        wanted = model_links(architecture)

        def matrix(link: Link) -> "Tensor":
            found = read_saved_matrix(link, saved)
            if found is None:
                raise CheckpointError(
                    f"{saved.path} lacks {link.key}; its {description.RUN_CONFIG} is of another "
                    "model."
                )
            return found

        tensors = _scattered(wanted, matrix)
    return LoadedModel(architecture=architecture, tensors=tensors)


def save_hugging_face(
    destination: Path, architecture: Architecture, tensors: Mapping[str, "Tensor"]
) -> None:
    """Write a model as a Hugging Face folder of the family that holds it.

    Args:
        destination: A new or empty folder.
        architecture: Which model it is.
        tensors: Parameters of the `MoEModel`, by name.

    Raises:
        MappingError: No family holds such a model; says what the nearest lacks.
        CheckpointError: The folder cannot be written, or holds something.
    """
    check_free(destination, overwrite=False)
    staging = staging_of(destination)
    _write_hugging_face(staging, architecture, tensors)
    publish(staging, destination)


def save_megatron(
    destination: Path, architecture: Architecture, tensors: Mapping[str, "Tensor"]
) -> None:
    """Write a model as a Megatron checkpoint, for `--load`.

    Args:
        destination: A new or empty folder.
        architecture: Which model it is.
        tensors: Parameters of the `MoEModel`, by name.

    Raises:
        MappingError: No family holds such a model; says what the nearest lacks.
        CheckpointError: The folder cannot be written, or holds something.
    """
    parent = destination.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=parent, prefix=f".{destination.name}.")
    except OSError as error:
        raise CheckpointError(f"{parent} cannot be written ({error.strerror}).") from error
    with scratch as folder:
        between = Path(folder) / destination.name
        _write_hugging_face(between, architecture, tensors)
        import_checkpoint(between, destination, execution=Execution(progress=False))


def _write_hugging_face(
    folder: Path, architecture: Architecture, tensors: Mapping[str, "Tensor"]
) -> None:
    from safetensors.torch import save_file

    run = RunConfig(
        model=architecture.model,
        moe=architecture.moe,
        data=DataConfig(vocab_size=architecture.vocab_size),
        megatron=architecture.flags,
    )
    family = family_of_run(run)
    config = family.hf_config(run)
    config["dtype"] = str(tensors["embed_tokens.weight"].dtype).removeprefix("torch.")
    links = family.links(family.geometry(config))
    own = {_place(link): link for link in model_links(architecture)}
    _check_places(folder, own.keys(), {_place(link): link for link in links})
    found = _scattered(links, lambda link: _gathered(own[_place(link)], tensors))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(f"a model cannot be written to {folder}: {error}.") from error


def _architecture(run: RunConfig, vocab_size: int) -> Architecture:
    flags = {key: value for key, value in run.megatron.items() if key in extras.COMPUTED}
    return Architecture(model=run.model, moe=run.moe, vocab_size=vocab_size, flags=flags)


def _scattered(links: Iterable[Link], matrix: Callable[[Link], "Tensor"]) -> dict[str, "Tensor"]:
    """The tensors that blocks are parts of, filled from the matrices of their links."""
    import torch

    found: dict[str, Tensor] = {}
    for link in links:
        values = matrix(link)
        rows = values.reshape(matrix_size(link.shape))
        at = 0
        for block in link.blocks:
            assert block.transform is Transform.NONE, "what MoEModel computes is stored plainly"
            if block.name not in found:
                found[block.name] = torch.empty(block.shape, dtype=values.dtype)
            whole = found[block.name].view(matrix_size(block.shape))
            whole[block.start : block.start + block.rows] = rows[at : at + block.rows]
            at += block.rows
    return found


def _gathered(link: Link, tensors: Mapping[str, "Tensor"]) -> "Tensor":
    """The matrix of a link, from the tensors that its blocks are parts of."""
    import torch

    parts = [
        tensors[b.name].reshape(matrix_size(b.shape))[b.start : b.start + b.rows]
        for b in link.blocks
    ]
    return torch.cat(parts).reshape(link.shape).cpu()


def _place(link: Link) -> Place:
    return link.key, link.layer, link.expert


def _check_family(path: Path, family: Family, expected: str | None) -> None:
    if expected is not None and family.name != expected:
        raise CheckpointError(
            f"{path} holds a {family.name} model, not {expected}; load it with the class of its "
            "family in moe_megatron.models, or with MoEModel.from_pretrained, which takes any."
        )


def _check_computed(path: Path, run: RunConfig, limits: Iterable[str]) -> None:
    """Refuse what Megatron, or `MoEModel` beside it, computes differently."""
    known = {*extras.COMPUTED, _PREDICTION}
    flags = [f"--{key}" for key in run.megatron if key not in known]
    problems = [*limits, *([f"MoEModel has no {', '.join(flags)}."] if flags else [])]
    if problems:
        raise CheckpointError(
            f"{path} needs what MoEModel does not compute: {' '.join(problems)} Convert it "
            "(moe-megatron convert) and train it with pretrain_moe.py, or load it with "
            "transformers."
        )


def _check_places(path: Path, ours: Iterable[Place], theirs: Mapping[Place, Link]) -> None:
    """Both sides have the same matrices; tensors that Megatron carries along are left out."""
    own = set(ours)
    others = {place for place in theirs if not place[0].startswith(_CARRIED)}
    if own != others:
        key, layer, expert = sorted(own ^ others, key=str)[0]
        raise CheckpointError(
            f"{path}: MoEModel {'has' if (key, layer, expert) in own else 'has not'} "
            f"{key} (layer {layer}, expert {expert}), unlike this model; load it with "
            "transformers, or convert it (moe-megatron convert)."
        )
