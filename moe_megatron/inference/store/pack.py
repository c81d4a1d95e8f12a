"""Writes the experts of a model folder, one by one, to a folder or a bucket.

`experts.json` comes last: before, there is no store, and what was written is written again by the
next attempt. Nothing of a complete store is ever replaced.
"""

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_megatron.checkpoint.execute.publish import check_apart
from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.checkpoint.progress import show_progress
from moe_megatron.errors import CheckpointError
from moe_megatron.families import family_of
from moe_megatron.inference.exported import model_folder
from moe_megatron.inference.store.about import ABOUT, About, context, digests, read_about
from moe_megatron.inference.store.hugging_face import HuggingFaceStore
from moe_megatron.inference.store.zarr import open_array
from moe_megatron.locations import Location, parse_location, reason_of

_UNDERWAY = 4
"""Experts in memory, which are being written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """What was written."""

    address: str
    experts: int
    """Of all layers."""
    nbytes: int


def pack_experts(source: str | Path, target: str | Path, *, progress: bool = True) -> Packed:
    """Write the experts of a model where `OptimizedMoEModel.from_pretrained(experts=)` reads them.

    Args:
        source: A Hugging Face folder, a hub id, or a Megatron checkpoint.
        target: A folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX; credentials are those of the
            environment.
        progress: Whether progress is shown on stderr.

    Raises:
        CheckpointError: The model cannot be read, or the target has a store or cannot be written.
        ConfigError: The target is no address.
        MappingError: There is no table for the model's family.
    """
    location = parse_location(target, "experts")
    path = model_folder(source)
    if location.folder is not None:
        check_apart(location.folder, path)
    store = HuggingFaceStore(path)
    try:
        about = _about(HfFolder(path), store)
        if read_about(location) is not None:
            raise CheckpointError(
                f"{location.text} has a store of experts already, and a model may be reading it; "
                "give another place, or remove that one first."
            )
        _write(store, location, about, progress=progress)
    finally:
        store.close()
    return Packed(
        address=location.text,
        experts=len(store.keys),
        nbytes=len(store.keys) * about.nbytes,
    )


def _about(folder: HfFolder, store: HuggingFaceStore) -> About:
    others, experts = digests(folder)
    assert experts is not None
    if len(store.keys) != len(store.layers) * store.experts:
        raise CheckpointError(f"{folder.path} has layers of different numbers of experts.")
    return About(
        family=family_of(folder.config).name,
        layers=store.layers,
        experts=store.experts,
        top_k=store.top_k,
        shapes=store.shapes,
        dtype=store.dtype,
        others_digest=others,
        experts_digest=experts,
    )


def _write(store: HuggingFaceStore, location: Location, about: About, *, progress: bool) -> None:
    import tensorstore as ts

    array = open_array(location, about, create=True)
    rows = {layer: row for row, layer in enumerate(about.layers)}
    free = [np.empty(about.nbytes, np.uint8) for _ in range(_UNDERWAY)]
    writing: deque[tuple[Any, Any]] = deque()
    try:
        with show_progress("pack", len(store.keys) * about.nbytes, enabled=progress) as advance:
            for layer, expert in sorted(store.keys):
                if not free:
                    written, memory = writing.popleft()
                    written.result()
                    advance(about.nbytes)
                    free.append(memory)
                memory = free.pop()
                store.read_into((layer, expert), memoryview(memory))
                writing.append((array[rows[layer], expert].write(memory), memory))
            for written, _ in writing:
                written.result()
                advance(about.nbytes)
        everything = ts.KvStore.open(location.kvstore, context=context()).result()
        everything.write(ABOUT, about.text().encode()).result()
    except ValueError as error:
        raise CheckpointError(
            f"{location.text} cannot be written: {reason_of(error)}. Nothing uses what is there; "
            "run the command again when it can."
        ) from error
