"""Some experts of another store, numbered as routers number them that know no others."""

from pathlib import Path

from torch import Tensor

from moe_megatron.inference.cache.policies import Counts, Key
from moe_megatron.inference.kept_experts import Kept
from moe_megatron.inference.quantization.kernels import Matrix
from moe_megatron.inference.store.expert_store import ExpertStore


class KeptStore:
    """A view of a store; closing it closes that.

    Args:
        whole: The store of all experts.
        kept: Which of them there are, by layer, from 0.
    """

    def __init__(self, whole: ExpertStore, kept: Kept) -> None:
        self._whole = whole
        self._number = {
            (layer, new): (layer, old)
            for layer, experts in kept.items()
            for new, old in enumerate(experts)
        }
        self.path: Path = whole.path
        self.layers, self.top_k = whole.layers, whole.top_k
        self.experts = max(map(len, kept.values()))
        self.nbytes, self.dtype = whole.nbytes, whole.dtype

    @property
    def keys(self) -> frozenset[Key]:
        """Layers, from 0, and experts."""
        return frozenset(self._number)

    def read_into(self, key: Key, memory: memoryview) -> None:
        """See `ExpertStore.read_into`."""
        self._whole.read_into(self._number[key], memory)

    def bytes_to_read(self, key: Key) -> int:
        """See `ExpertStore.bytes_to_read`."""
        return self._whole.bytes_to_read(self._number[key])

    def matrices(self, key: Key, memory: Tensor) -> tuple[Matrix, Matrix]:
        """See `ExpertStore.matrices`."""
        return self._whole.matrices(self._number[key], memory)

    def renumbered(self, counts: Counts) -> Counts:
        """Counts of experts of the whole store, by their numbers here."""
        return {new: counts[old] for new, old in self._number.items() if old in counts}

    def close(self) -> None:
        """Close the files."""
        self._whole.close()
