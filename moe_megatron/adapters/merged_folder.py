"""Merges an adapter into a model on disk: a new folder, one matrix in memory at a time.

The base is copied, or exported from a run's checkpoint, beside the destination; there each adapted
matrix is read, changed and written back; then the folder gets its name. It does not know how
matrices are adapted.
"""

import shutil
from pathlib import Path

from moe_megatron.adapters.base_hash import hash_of_folder
from moe_megatron.adapters.hf_layouts import layouts_of_folder
from moe_megatron.adapters.low_rank import Adapter
from moe_megatron.adapters.peft_folder import read_folder
from moe_megatron.adapters.pieces import Pieces
from moe_megatron.adapters.run_adapter import read_run_adapter
from moe_megatron.adapters.split import check_fits
from moe_megatron.checkpoint.convert import Execution, export_checkpoint, import_checkpoint
from moe_megatron.checkpoint.execute.publish import check_apart, check_free, publish, staging_of
from moe_megatron.checkpoint.formats import dtypes, side_files
from moe_megatron.checkpoint.formats.hf_folder import CONFIG, INDEX, HfFolder
from moe_megatron.checkpoint.formats.own_files import check_own
from moe_megatron.checkpoint.integrity.seal import seal
from moe_megatron.checkpoint.matrices import read_matrix, write_matrix
from moe_megatron.config.checkpoint_files import is_megatron_checkpoint
from moe_megatron.errors import CheckpointError
from moe_megatron.families import family_of

_QUIET = Execution(progress=False, resume=False)


def merge_folder(
    source: Path, destination: Path, *, adapter: Path | None = None, as_megatron: bool = False
) -> Adapter:
    """Write a model whose matrices are those of a base with an adapter.

    Args:
        source: The base: a Hugging Face folder or a Megatron checkpoint.
        destination: A new or empty folder.
        adapter: A folder in PEFT's format; None: the adapter that `source`, the checkpoint of a
            run, holds beside its base.
        as_megatron: Whether to write a Megatron checkpoint, for `--load`, not a Hugging Face
            folder.

    Returns:
        What was merged.

    Raises:
        CheckpointError: The adapter belongs to another base, a file is damaged, or the destination
            holds something or cannot be written.
        MappingError: No family can express the model, or the adapter is more than low-rank.
    """
    check_apart(destination, source)
    check_free(destination)
    found = _adapter(source, adapter)
    scratch = destination.with_name(f".{destination.name}.merging")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        if is_megatron_checkpoint(source):
            export_checkpoint(source, scratch, base_alone=True, execution=_QUIET)
        else:
            _copy(source, scratch)
        _merge(scratch, found)
        if as_megatron:
            import_checkpoint(scratch, destination, execution=_QUIET)
        else:
            seal(scratch)
            publish(scratch, destination)
    except OSError as error:
        raise CheckpointError(
            f"{destination} cannot be written ({error.strerror}); check that its disk has room for "
            "the whole model and is writable. Nothing else has changed."
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(staging_of(scratch), ignore_errors=True)
    return found


def _adapter(source: Path, folder: Path | None) -> Adapter:
    if folder is None:
        if not is_megatron_checkpoint(source):
            raise CheckpointError(
                f"{source} is no checkpoint of a run, so it holds no adapter; name the folder of "
                "one (--adapter)."
            )
        return read_run_adapter(source)
    given = read_folder(folder)
    found = given.fitted(layouts_of_folder(source).both)
    if given.base is not None:
        given.check_base(hash_of_folder(source))
    return found


def _copy(source: Path, scratch: Path) -> None:
    """Copy the files of a model, without those that nobody knows."""
    folder = HfFolder(source)
    scratch.mkdir(parents=True)
    for name in (CONFIG, *sorted({tensor.file for tensor in folder.tensors.values()})):
        check_own(source / name, source)
        shutil.copyfile(source / name, scratch / name)
    if (source / INDEX).is_file():
        shutil.copyfile(source / INDEX, scratch / INDEX)
    for name, content in side_files.between_hugging_face(source):
        (scratch / name).write_bytes(content())


def _merge(folder_path: Path, adapter: Adapter) -> None:
    folder = HfFolder(folder_path)
    family = family_of(folder.config)
    geometry = family.geometry(folder.config, folder.tensors)
    pieces = Pieces(family.links_of(geometry, folder.tensors))
    for place, low_rank in adapter.items():
        check_fits(place, low_rank, pieces)
    _check_floats(folder, pieces, adapter)
    for place, low_rank in adapter.items():
        link = pieces.links[place]
        write_matrix(link, folder, low_rank.merged(read_matrix(link, folder)))


def _check_floats(folder: HfFolder, pieces: Pieces, adapter: Adapter) -> None:
    for place in adapter:
        for piece in pieces.of(place):
            tensor = folder.tensors.get(piece.tensor)
            if tensor is None or tensor.dtype not in dtypes.FLOATS:
                kind = "missing" if tensor is None else f"of the type {tensor.dtype}"
                raise CheckpointError(
                    f"{piece.tensor} of the base is {kind}, and an adapter is merged into whole "
                    "floating-point matrices; convert the base first (moe-megatron convert "
                    "--dtype bf16), and merge into that checkpoint."
                )
