"""Loads and saves `MoEModel` as a Hugging Face folder or Megatron checkpoint, in memory.

`MoEModel` computes only what its own configuration can express. A model that needs more is refused
with the reason; it can still be converted and trained in Megatron, without `MoEModel`.
"""

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moe_megatron.checkpoint.convert import Execution, import_checkpoint
from moe_megatron.checkpoint.edit.selection import without_prediction
from moe_megatron.checkpoint.execute.publish import check_free, publish, staging_of
from moe_megatron.checkpoint.formats import description
from moe_megatron.checkpoint.formats.hf_folder import CONFIG, HfFolder
from moe_megatron.checkpoint.formats.torch_dist import TorchDist
from moe_megatron.checkpoint.hub import local_folder
from moe_megatron.checkpoint.matrices import read_matrix, read_saved_matrix
from moe_megatron.checkpoint.plan.importing import ImportOptions, check_source
from moe_megatron.config import CONFIG_FILE, Architecture, DataConfig, RunConfig
from moe_megatron.config.checkpoint_files import HF_FOLDER, is_megatron_checkpoint
from moe_megatron.errors import CheckpointError
from moe_megatron.families import Family, family_of, family_of_run
from moe_megatron.families.links import Identity, Link
from moe_megatron.model.foreign import LoadedModel, connect
from moe_megatron.model.links import links_of
from moe_megatron.model.matrices import gathered, scatter
from moe_megatron.model.support import problems
from moe_megatron.tensor_file import save_tensors
from moe_megatron.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)
_CARRIED = "hugging_face."


def load(source: str | Path, *, expected: str | None = None) -> LoadedModel:
    """Read the weights of a Hugging Face model or of a Megatron checkpoint.

    Args:
        source: A folder, or a Hub id.
        expected: Name of the family that it must be; None for any.

    Raises:
        CheckpointError: It is not a checkpoint, is of another family, or is a model that `MoEModel`
            cannot compute; the message says why.
        MappingError: The family is unknown, or the tensors are not those of the family.
    """
    path = local_folder(source)
    if is_megatron_checkpoint(path):
        return _load_megatron(path, expected)
    return _load_hugging_face(path, expected)


def _load_hugging_face(path: Path, expected: str | None) -> LoadedModel:
    folder = HfFolder(path)
    family = family_of(folder.config)
    _check_family(path, family, expected)
    _check_trains(path, family)
    geometry = family.geometry(folder.config, folder.tensors)
    links = family.links_of(geometry, folder.tensors)
    redundant = family.redundant(geometry)
    check_source(folder, links, ImportOptions(stacked=geometry.homogeneous, redundant=redundant))
    for remark in family.remarks(folder.config):
        _log.warning("%s: %s", path, remark)
    architecture, left_out = _computed(path, geometry.architecture, family.limits(folder.config))
    by_identity = {link.identity: link for link in without_prediction(links, geometry)}
    wanted = links_of(architecture)
    _check_same(path, {link.identity for link in wanted}, by_identity)

    def matrix(link: Link) -> "Tensor":
        return read_matrix(by_identity[link.identity], folder)

    return LoadedModel(
        architecture=architecture,
        tensors=_assembled(wanted, matrix),
        left_out=left_out,
        tokenizer_folder=path,
    )


def _load_megatron(path: Path, expected: str | None) -> LoadedModel:
    with TorchDist(path) as saved:
        run = description.run_of(saved.path)
        description.check_whole(saved.path, run)
        base = description.base_config(saved.path)
        limits: tuple[str, ...] = ()
        if expected is not None or base is not None:
            family = description.family_of_folder(saved.path)
            _check_family(path, family, expected)
            _check_trains(path, family)
            limits = () if base is None else family.limits(base)
        vocab = run.data.vocab_size or saved.tensors["embedding.word_embeddings.weight"].shape[0]
        whole = replace(run.architecture, vocab_size=vocab)
        architecture, left_out = _computed(path, whole, limits)
        wanted = links_of(architecture)

        def matrix(link: Link) -> "Tensor":
            found = read_saved_matrix(link, saved)
            if found is None:
                raise CheckpointError(
                    f"{saved.path} lacks {link.key}, so its {CONFIG_FILE} is of another model; put "
                    "the right configuration there."
                )
            return found

        tensors = _assembled(wanted, matrix)
        if run.adapter.on:
            left_out += ("adapters (what is loaded is their base)",)
    return LoadedModel(
        architecture=architecture,
        tensors=tensors,
        left_out=left_out,
        tokenizer_folder=saved.path / HF_FOLDER,
    )


def save(
    destination: Path,
    architecture: Architecture,
    tensors: Mapping[str, "Tensor"],
    *,
    as_megatron: bool,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a model as a Hugging Face folder of a matching family, or as a Megatron checkpoint.

    Args:
        destination: A new or empty folder.
        architecture: Architecture of the model.
        tensors: Parameters of the `MoEModel`, by name.
        as_megatron: Write a Megatron checkpoint, for `--load`.
        tokenizer: Goes with the model.

    Raises:
        MappingError: No family can represent the model; the message says what the nearest lacks.
        CheckpointError: The folder cannot be written, or is not empty.
    """
    if not as_megatron:
        check_free(destination)
        staging = staging_of(destination)
        _write_hugging_face(staging, architecture, tensors, tokenizer)
        publish(staging, destination)
        return
    parent = destination.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=parent, prefix=f".{destination.name}.")
    except OSError as error:
        raise CheckpointError(f"{parent} cannot be written ({error.strerror}).") from error
    with scratch as folder:
        intermediate = Path(folder) / destination.name
        _write_hugging_face(intermediate, architecture, tensors, tokenizer)
        import_checkpoint(intermediate, destination, execution=Execution(progress=False))


def _write_hugging_face(
    folder: Path,
    architecture: Architecture,
    tensors: Mapping[str, "Tensor"],
    tokenizer: Tokenizer | None,
) -> None:
    run = RunConfig(
        model=architecture.model,
        moe=architecture.moe,
        data=DataConfig(vocab_size=architecture.vocab_size),
    )
    family = family_of_run(run)
    config = family.hf_config(run)
    config["dtype"] = str(tensors["embed_tokens.weight"].dtype).removeprefix("torch.")
    links = family.links(family.geometry(config))
    own = {link.identity: link for link in links_of(architecture)}
    _check_same(folder, own.keys(), {link.identity: link for link in links})
    found = _assembled(links, lambda link: gathered(own[link.identity], tensors).cpu())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(found, folder / "model.safetensors", {"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(f"a model cannot be written to {folder}: {error}.") from error
    if tokenizer is not None:
        tokenizer.save(folder)


def _assembled(links: Iterable[Link], matrix: Callable[[Link], "Tensor"]) -> dict[str, "Tensor"]:
    """The tensors to which the blocks belong, filled from the matrices of their links."""
    found: dict[str, Tensor] = {}
    for link in links:
        scatter(matrix(link), link, found)
    return found


def _check_family(path: Path, family: Family, expected: str | None) -> None:
    if expected is not None and family.name != expected:
        raise CheckpointError(
            f"{path} holds a {family.name} model, not {expected}; load it with the class of its "
            "family in moe_megatron.models, or with MoEModel.from_pretrained, which takes any "
            "family."
        )


def _check_trains(path: Path, family: Family) -> None:
    if family.untrained:
        raise CheckpointError(
            f"{path} holds a {family.name} model, which does not train here: {family.untrained} It "
            "converts bit by bit (moe-megatron convert); load it with transformers."
        )


def _computed(
    path: Path, architecture: Architecture, limits: Iterable[str]
) -> tuple[Architecture, tuple[str, ...]]:
    """The architecture that `MoEModel` computes, and descriptions of the parts that it leaves out.

    Raises:
        CheckpointError: Megatron or `MoEModel` cannot compute this model's function.
    """
    layers = architecture.model.num_prediction_layers
    left_out = (f"{layers} layer(s) of multi-token prediction",) if layers else ()
    model = replace(architecture.model, num_prediction_layers=0)
    architecture = replace(architecture, model=model)
    if found := [*limits, *problems(architecture)]:
        raise CheckpointError(
            f"MoEModel cannot compute the model in {path}. {' '.join(found)} Convert it "
            "(moe-megatron convert) and train it with pretrain_moe.py, or load it with "
            "transformers."
        )
    return architecture, left_out


def _check_same(path: Path, ours: Iterable[Identity], theirs: Mapping[Identity, Link]) -> None:
    """Check that both sides have the same matrices, apart from tensors that are only copied."""
    own = set(ours)
    others = {it for it in theirs if not it[0].startswith(_CARRIED)}
    if own != others:
        key, layer, expert = sorted(own ^ others, key=str)[0]
        raise CheckpointError(
            f"{path}: MoEModel {'has' if (key, layer, expert) in own else 'does not have'} "
            f"{key} (layer {layer}, expert {expert}), unlike this model; load it with "
            "transformers, or convert it (moe-megatron convert)."
        )


connect(sys.modules[__name__])
