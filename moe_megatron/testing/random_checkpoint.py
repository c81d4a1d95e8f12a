"""Writes a Hugging Face folder of any size with random weights, without building the model."""

import json
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

_POOL = 1 << 22
"""Size of the pool of random numbers from which tensors are cut, at different positions."""


def write_random(
    folder: Path, config: Mapping[str, Any], *, shard_bytes: int = 2_000_000_000, seed: int = 0
) -> int:
    """Write bfloat16 weights in the layout that every version of transformers reads.

    Args:
        folder: The folder to write; created if it is missing.
        config: Content of its `config.json`.
        shard_bytes: Size from which on a file is full.
        seed: Seed of the weights.

    Returns:
        Total size of the weights in bytes.
    """
    import torch
    from safetensors.torch import save_file

    from moe_megatron.families import family_of

    family = family_of(config)
    links = family.links(family.geometry(config), fused=False)
    shapes = {block.name: block.shape for link in links for block in link.blocks}
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(_POOL, generator=generator).bfloat16()
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    shard: dict[str, Any] = {}
    numbers = count(1)

    def write() -> None:
        file = f"model-{next(numbers):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
        shard.clear()

    total = filled = 0
    for position, (name, shape) in enumerate(shapes.items()):
        size = torch.Size(shape).numel()
        start = position * 7919 % _POOL
        repeats = -(-(start + size) // _POOL)
        shard[name] = pool.repeat(repeats)[start : start + size].reshape(shape).clone()
        total, filled = total + 2 * size, filled + 2 * size
        if filled >= shard_bytes:
            write()
            filled = 0
    if shard:
        write()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(dict(config)))
    return total
