"""What a folder holds after it was written: the type of every expert and of every router.

Three libraries were seen to leave fused experts in bf16 without a word; so headers are read again.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.config.aligned import aligned
from moe_megatron.errors import CheckpointError
from moe_megatron.families import family_of
from moe_megatron.inference.quantization import names
from moe_megatron.inference.store.packed import PackedStore


@dataclass(frozen=True, slots=True)
class Audit:
    """How many experts and routers have which type."""

    experts: dict[str, int]
    routers: dict[str, int]

    def table(self) -> str:
        """A line for each kind and type."""
        rows = [
            [kind, str(count), dtype]
            for kind, them in (("experts", self.experts), ("routers", self.routers))
            for dtype, count in them.items()
        ]
        return "\n".join(aligned([["", "number", "type"], *rows], flush_left=0))


def audit(path: Path) -> Audit:
    """Read the headers of a packed folder.

    Raises:
        CheckpointError: An expert was not quantized, or a router was.
    """
    store = PackedStore(path)  # refuses an expert that is not packed
    store.close()
    experts = Counter(str(store.precision(key)) for key in sorted(store.keys))
    folder = HfFolder(path, quantized=True)
    family = family_of(folder.config)
    geometry = family.geometry(folder.config, store.weights)
    routers: Counter[str] = Counter()
    for name in names.routers(family, geometry):
        tensor = folder.tensors.get(name)
        if tensor is None or tensor.dtype not in dtypes.FLOATS:
            raise CheckpointError(
                f"{path}: the router {name} is "
                f"{'missing' if tensor is None else tensor.dtype}, and routers stay as they were; "
                "do not use this folder."
            )
        routers[tensor.dtype] += 1
    return Audit(dict(experts), dict(routers))
