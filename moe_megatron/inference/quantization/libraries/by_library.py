"""From a model and a text to a folder that a library's method has rounded, checked."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from moe_megatron.checkpoint.execute.publish import check_apart, check_free
from moe_megatron.checkpoint.formats import side_files
from moe_megatron.checkpoint.integrity.seal import seal
from moe_megatron.errors import CheckpointError
from moe_megatron.files import (
    exclusive_lock,
    explained_writes,
    publishing,
    user_path,
    working_directory,
)
from moe_megatron.inference.exported import model_folder
from moe_megatron.inference.quantization.audit import audit
from moe_megatron.inference.quantization.calibration import Coverage
from moe_megatron.inference.quantization.libraries.calibrating import CANDIDATES, calibrated
from moe_megatron.inference.quantization.libraries.codes import Rounded
from moe_megatron.inference.quantization.libraries.environment import environment_python
from moe_megatron.inference.quantization.libraries.export import Export, audit_export
from moe_megatron.inference.quantization.libraries.library import library_method_of
from moe_megatron.inference.quantization.libraries.process import LOG, PROGRAM, run_program
from moe_megatron.inference.quantization.packed_folder import Sizes, Unpacked, write_packed
from moe_megatron.inference.quantization.precision import check_shape, precision
from moe_megatron.inference.quantization.quantize import Quantization
from moe_megatron.tensor_file import save_tensors

_log = logging.getLogger(__name__)
_CALIBRATION, _OUTPUT = "calibration.safetensors", "output"


@dataclass(frozen=True, kw_only=True, slots=True)
class LibraryRecipe:
    """What a library is asked for."""

    method: str
    """One of `METHODS`."""
    group_size: int = 32
    """How many weights of a row share a scale, where the method has groups."""
    sequences: int = 64
    """Of the text, from which it learns."""
    length: int = 512
    """Tokens of each."""
    least: int = 256
    """Tokens that every expert should see."""


def quantize_by_library(
    source: str | Path,
    target: str | Path,
    recipe: LibraryRecipe,
    text: str,
    *,
    overwrite: bool = False,
    progress: bool = True,
    program: Path = PROGRAM,
) -> tuple[Quantization, Coverage]:
    """Write a model folder with experts that a library has rounded, and all else as it was.

    Args:
        source: A Hugging Face folder with a tokenizer, a hub id, or a Megatron checkpoint.
        target: The folder to write.
        text: What experts are calibrated with.
        recipe: What the library is asked for.
        overwrite: Whether a folder that is there may be replaced.
        progress: Whether progress is told on stderr.
        program: What runs in the library's environment.

    Returns:
        The folder, and how many calibration tokens every expert got.

    Raises:
        CheckpointError: The source cannot be read, the target must not be replaced, or the library
            failed or did something else than it was asked to.
        ConfigError: There is no such method, its environment was not built, or a number does not
            fit the model.
        DataError: There is no tokenizer, the text is too short, or the target cannot be written.
        MappingError: The family is unknown.
    """
    method, wanted = library_method_of(recipe.method), precision(4, recipe.group_size)
    python = environment_python(method.library)
    path, folder = model_folder(source), user_path(target)
    check_apart(folder, path)
    check_free(folder, overwrite=overwrite)
    model = Unpacked(path)
    model.store.close()
    if not method.as_written:
        for shape in model.store.shapes:
            check_shape(shape, wanted)
    place = folder.with_name(f"{folder.name}.{recipe.method}")
    with explained_writes(folder), exclusive_lock(place), working_directory(place) as work:
        if progress:
            _log.warning(
                "reads up to %d sequences of %d tokens, to choose those that reach every expert",
                *(CANDIDATES * recipe.sequences, recipe.length),
            )
        ids, coverage = calibrated(path, text, recipe.sequences, recipe.length, recipe.least)
        save_tensors({"input_ids": ids.to(torch.int32)}, work / _CALIBRATION)
        job = {
            "method": recipe.method,
            "model": str(path.resolve()),
            "calibration": str(work / _CALIBRATION),
            "output": str(work / _OUTPUT),
            "group_size": recipe.group_size,
        }
        if progress:
            _log.warning(coverage.table())
            _log.warning(
                "%s quantizes %d experts by %d sequences of %d tokens; its messages are in %s",
                *(method.library.title, len(model.keys), *ids.shape, work / LOG),
            )
        log = place.with_name(f"{place.name}.log")
        run_program(python, job, work, log, title=method.library.title, program=program)
        export = audit_export(
            work / _OUTPUT,
            path,
            method.layout,
            library=method.library.title,
            bits=wanted.bits,
            group_size=recipe.group_size,
        )
        if method.as_written:
            return _published(export, model, folder), coverage
        rounded = Rounded(model, export, method)
        try:
            sizes = write_packed(
                rounded,
                folder,
                rounded.method,
                dict.fromkeys(rounded.keys, wanted),
                method_name=f"{recipe.method} ({method.library.title})",
                overwrite=overwrite,
                progress=progress,
            )
        finally:
            rounded.store.close()
    return Quantization(folder=folder, sizes=sizes, audit=audit(folder)), coverage


def _published(export: Export, model: Unpacked, folder: Path) -> Quantization:
    """The library's folder, with the tokenizer and what else is beside weights.

    Raises:
        CheckpointError: Its names are not those of the family.
    """
    theirs = {*export.modules.values()}
    names = [it.module for them in export.projections.values() for it in them]
    if other := sorted(theirs - {*names}):
        raise CheckpointError(
            f"the library calls experts {other[0]} and so on, and their family {names[0]}; vLLM "
            "takes such matrices for others and says nothing (llm-compressor's issue 3069). Take a "
            "method whose experts are written anew, as gptq or w4a16."
        )
    made = export.folder
    of_experts = sum(
        it.nbytes for name, it in made.tensors.items() if name.rpartition(".")[0] in theirs
    )
    others = sum(it.nbytes for it in made.tensors.values()) - of_experts
    with publishing(folder) as partial:
        made.path.rename(partial)
        for name, content in side_files.between_hugging_face(model.path):
            (partial / name).write_bytes(content())
        seal(partial)
    before = len(model.keys) * model.store.nbytes
    sizes = Sizes(experts_before=before, experts_after=of_experts, others=others)
    return Quantization(folder=folder, sizes=sizes, audit=export.audit)
