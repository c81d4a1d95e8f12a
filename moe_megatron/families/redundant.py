"""Tensors that a Hugging Face folder may hold although other tensors say the same.

They are left out of a conversion only when they have been proved redundant; which tensors these are
is said here, and the proof, which reads weights, is `checkpoint.plan.redundant`.
"""

import re
from dataclasses import dataclass

from moe_megatron.families.geometry import Geometry


@dataclass(frozen=True, slots=True, kw_only=True)
class Redundant:
    """Tensors that repeat another one, or hold numbers that follow from the configuration."""

    pattern: str
    """Regular expression for their whole names."""
    copy_of: str = ""
    """Name of the tensor whose bytes they repeat."""
    frequencies: tuple[float, int] | None = None
    """Base and width of the rotary frequencies that they hold."""

    def matches(self, name: str) -> bool:
        """Whether a tensor of this name is meant."""
        return re.fullmatch(self.pattern, name) is not None


def rotary_buffers(geometry: Geometry) -> tuple[Redundant, ...]:
    """The rotary frequencies that old versions of transformers saved, if they are plain ones."""
    model = geometry.architecture.model
    scaling = model.rope_scaling
    if model.position_embedding != "rope" or (scaling is not None and scaling.kind != "linear"):
        return ()
    latent = model.latent_attention
    width = latent.qk_pos_emb_head_dim if latent else model.attention_head_dim
    rotated = int(width * model.rotary_fraction)
    buffers = r".*rotary_emb\.inv_freq"
    return (Redundant(pattern=buffers, frequencies=(float(model.rotary_base), rotated)),)
