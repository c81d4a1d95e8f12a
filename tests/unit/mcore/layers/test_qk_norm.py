"""The norm over all heads against its slow twin; tests/functional has it on several ranks."""

import pytest
import torch
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.utils import sharded_state_dict_default

from moe_megatron.errors import ConfigError
from moe_megatron.mcore.layers.qk_norm import NORMS

HEADS, GROUPS, WIDTH, EPS = 4, 2, 6, 1e-3


def config(**fields: object) -> TransformerConfig:
    return TransformerConfig(
        num_layers=1,
        hidden_size=HEADS * WIDTH,
        num_attention_heads=HEADS,
        num_query_groups=GROUPS,
        **{"normalization": "RMSNorm", **fields},
    )


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(("name", "heads"), [("q_layernorm", HEADS), ("k_layernorm", GROUPS)])
def test_norm_equals_its_slow_twin(name: str, heads: int) -> None:
    norm = NORMS[name](config=config(), hidden_size=WIDTH, eps=EPS)
    torch.manual_seed(0)
    norm.weight.data.uniform_(0.5, 1.5)
    x = torch.randn(3, 2, heads, WIDTH, requires_grad=True)
    rows = x.reshape(-1, heads * WIDTH)
    slow = torch.stack([row / (row.square().mean() + EPS).sqrt() * norm.weight for row in rows])
    torch.testing.assert_close(norm(x), slow.view_as(x))
    (fast_gradient,) = torch.autograd.grad(norm(x).pow(3).sum(), x, retain_graph=True)
    (slow_gradient,) = torch.autograd.grad(slow.pow(3).sum(), x)
    torch.testing.assert_close(fast_gradient, slow_gradient)


@pytest.mark.usefixtures("world")
def test_scale_is_saved_whole() -> None:
    norm = NORMS["q_layernorm"](config=config(), hidden_size=WIDTH)
    (tensor,) = sharded_state_dict_default(norm, "q_layernorm.").values()
    assert (tensor.key, tensor.global_shape) == ("q_layernorm.weight", (HEADS * WIDTH,))


@pytest.mark.usefixtures("world")
def test_other_norms_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"'all_heads' needs model\.norm 'RMSNorm', and model\.norm is 'La"
    ):
        NORMS["q_layernorm"](config=config(normalization="LayerNorm"), hidden_size=WIDTH)
