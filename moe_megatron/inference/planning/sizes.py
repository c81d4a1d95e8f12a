"""What of a model takes memory, from its headers: no weights are read."""

from dataclasses import dataclass
from pathlib import Path

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.config.model import GATED
from moe_megatron.families import family_of
from moe_megatron.families.geometry import Geometry
from moe_megatron.inference.store.expert_store import ExpertStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes of a model whose experts a store reads, and the shape of a token's way through it."""

    others: int
    """All weights but the routed experts."""
    looked_up: int
    """Those among them that no token reads: rows of an embedding that is not the output's, too."""
    expert: int
    """An expert in memory."""
    file: int
    """An expert in the file, in the mean."""
    cached_token: int
    """Keys and values of a token."""
    hidden: int
    expert_width: int
    """Inner width of an expert."""
    first_rows: int
    """Rows of an expert's first matrix: twice the width where it has a gate."""
    layers: int
    moe_layers: int
    experts: int
    """Of a layer."""
    top_k: int

    @property
    def every(self) -> int:
        """Experts of all layers."""
        return self.moe_layers * self.experts

    @property
    def read_always(self) -> int:
        """Bytes besides experts that every token reads."""
        return self.others - self.looked_up

    def besides(self, program: int, context: int) -> int:
        """Bytes of memory besides experts: a program, other weights, keys and values of tokens."""
        return program + self.others + context * self.cached_token

    @property
    def needed(self) -> int:
        """Experts that a token needs, over all layers."""
        return self.moe_layers * self.top_k


def sizes_of(path: Path, store: ExpertStore) -> Sizes:
    """The sizes of a model folder.

    Args:
        path: A Hugging Face folder.
        store: Its experts.

    Raises:
        CheckpointError: It is incomplete or damaged.
        MappingError: There is no table for its family.
    """
    folder = HfFolder(path, quantized=True)
    geometry = family_of(folder.config).geometry(folder.config, folder.tensors)
    activation = geometry.architecture.model.activation
    in_experts = sum(map(store.bytes_to_read, store.keys))
    item = dtypes.item_size(store.dtype)
    return Sizes(
        others=sum(it.nbytes for it in folder.tensors.values()) - in_experts,
        looked_up=geometry.untied * geometry.vocab * geometry.hidden * item,
        expert=store.nbytes,
        file=in_experts // len(store.keys),
        cached_token=geometry.layers * _cached_features(geometry) * item,
        hidden=geometry.hidden,
        expert_width=geometry.expert_width,
        first_rows=geometry.expert_width * (2 if activation in GATED else 1),
        layers=geometry.layers,
        moe_layers=len(store.layers),
        experts=store.experts,
        top_k=store.top_k,
    )


def _cached_features(geometry: Geometry) -> int:
    """Numbers that a layer keeps of a token: keys and values, or what both are made of (MLA)."""
    return geometry.latent_kv_down_rows if geometry.kv_lora else 2 * geometry.kv_rows
