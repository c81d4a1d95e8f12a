"""Random adapters of random models, of odd ranks and scales."""

from collections.abc import Callable, Collection

import pytest
import torch

from moe_megatron.adapters.low_rank import LowRank
from moe_megatron.adapters.pieces import Pieces
from moe_megatron.config.parameter_roles import role_of

ROLES = ("attention", "experts", "shared_experts", "mlp")
Drawn = dict[str, LowRank]


@pytest.fixture
def draw() -> Callable[..., Drawn]:
    """Draws an adapter of the matrices of a layout that play these roles."""

    def drawn(
        pieces: Pieces,
        roles: Collection[str] = ROLES,
        *,
        seed: int = 1,
        magnitudes: bool = False,
        equal: bool = False,
    ) -> Drawn:
        generator = torch.Generator().manual_seed(seed)
        found: Drawn = {}
        for number, (place, link) in enumerate(pieces.links.items()):
            left_out = "gate_weight" in place or "layers.0.mlp.experts.local_experts.3." in place
            if role_of(place) not in roles or left_out:
                continue
            rank = 2 if equal else 2 + number % 3
            outputs, inputs = link.shape
            a = torch.randn(rank, inputs, generator=generator)
            b = torch.randn(outputs, rank, generator=generator)
            scale = 0.02 if equal else 0.02 + 0.02 * (number % 2)
            norm = torch.rand(outputs, generator=generator) + 0.5 if magnitudes else None
            found[place] = LowRank(a, b, scale, norm)
        return found

    return drawn
