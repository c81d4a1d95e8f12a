"""Small models of every kind that can be watched, and the slow way to see their routers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_megatron.model import MoEModel
from moe_megatron.testing import tiny_models

FAMILIES = ("mixtral", "olmoe", "qwen2_moe", "qwen2_moe-dense-layers", "qwen3_moe")


@pytest.fixture
def make_model() -> Callable[..., MoEModel]:
    def make(**options: Any) -> MoEModel:
        torch.manual_seed(1)
        defaults = {
            "hidden_size": 32, "num_experts": 4, "experts_per_token": 2, "num_layers": 3,
            "num_attention_heads": 4, "vocab_size": 61,
        }  # fmt: skip
        return MoEModel(**(defaults | options)).eval()

    return make


@pytest.fixture(scope="session", params=FAMILIES)
def foreign(request: pytest.FixtureRequest) -> Any:
    """A model of transformers."""
    return tiny_models.build(request.param)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 61, (3, 7), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def padded() -> tuple[Tensor, Tensor]:
    """Token ids and a mask with padding on either side."""
    ids = torch.randint(0, 61, (3, 7), generator=torch.Generator().manual_seed(3))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [0] * 2 + [1] * 5])
    return ids, mask
