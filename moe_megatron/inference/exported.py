"""Models that are no Hugging Face folder yet: exported once, by the exporter, and found again.

A Megatron checkpoint is exported into the cache, under a name with a digest of its files, so that
another step of the same run is another folder, and a damaged one is made again.
"""

import hashlib
from pathlib import Path

from moe_megatron.cached import cached_folder, sampled_digest
from moe_megatron.checkpoint.convert import export_checkpoint
from moe_megatron.checkpoint.formats.torch_dist import TorchDist
from moe_megatron.checkpoint.hub import local_folder
from moe_megatron.config.checkpoint_files import is_megatron_checkpoint
from moe_megatron.files import default_cache_dir, readable_name


def model_folder(source: str | Path) -> Path:
    """The Hugging Face folder of a model: a folder, a hub id, or a Megatron checkpoint, exported.

    Raises:
        CheckpointError: There is none, or it is damaged, or cannot be exported.
        DataError: The cache cannot be written.
        MappingError: No Hugging Face family can represent the model.
    """
    path = local_folder(source)
    return exported(path) if is_megatron_checkpoint(path) else path


def exported(checkpoint: Path) -> Path:
    """The Hugging Face folder of a Megatron checkpoint; it takes as much room as the weights.

    Args:
        checkpoint: A step's folder, or the folder around it, whose newest step is taken.

    Raises:
        CheckpointError: The checkpoint is damaged, or the folder cannot be written.
        DataError: The cache cannot be written.
        MappingError: No Hugging Face family can represent the model.
    """
    with TorchDist(checkpoint) as saved:
        step = saved.path.resolve()
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(it for it in step.iterdir() if it.is_file()):
        digest.update(f"{file.name} {sampled_digest(file)}\n".encode())
    name = f"{readable_name(step.name)}-{digest.hexdigest()}"

    def build(folder: Path) -> None:
        export_checkpoint(step, folder)

    return cached_folder(default_cache_dir() / "exported" / name, build)
