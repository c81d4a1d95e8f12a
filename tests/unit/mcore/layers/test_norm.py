import pytest
import torch
from megatron.core.transformer import TransformerConfig

from moe_megatron.errors import ConfigError
from moe_megatron.mcore.layers.norm import LocalNorm

SIZE, EPS = 8, 1e-3


def config(**fields: object) -> TransformerConfig:
    return TransformerConfig(num_layers=1, hidden_size=SIZE, num_attention_heads=2, **fields)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 2, SIZE, generator=torch.Generator().manual_seed(0), requires_grad=True)


def plain_rms_norm(x: torch.Tensor) -> torch.Tensor:
    rows = [row / (row.square().mean() + EPS).sqrt() for row in x.reshape(-1, SIZE)]
    return torch.stack(rows).reshape(x.shape)


def plain_layer_norm(x: torch.Tensor) -> torch.Tensor:
    rows = [
        (row - row.mean()) / (row.var(unbiased=False) + EPS).sqrt() for row in x.reshape(-1, SIZE)
    ]
    return torch.stack(rows).reshape(x.shape)


@pytest.mark.parametrize(
    ("normalization", "slow"), [("RMSNorm", plain_rms_norm), ("LayerNorm", plain_layer_norm)]
)
def test_norm_equals_its_slow_twin(normalization, slow, x):
    norm = LocalNorm(config(normalization=normalization), SIZE, eps=EPS)
    assert type(norm) is getattr(torch.nn, normalization)
    torch.testing.assert_close(norm(x), slow(x))
    (fast_gradient,) = torch.autograd.grad(norm(x).square().sum(), x)
    (slow_gradient,) = torch.autograd.grad(slow(x).square().sum(), x)
    torch.testing.assert_close(fast_gradient, slow_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalization", ["RMSNorm", "LayerNorm"])
@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_every_parameter_is_marked_for_sequence_parallelism(normalization, sequence_parallel):
    settings = config(normalization=normalization)
    settings.sequence_parallel = sequence_parallel
    norm = LocalNorm(settings, SIZE)
    assert len(list(norm.parameters())) == {"RMSNorm": 1, "LayerNorm": 2}[normalization]
    assert all(p.sequence_parallel is sequence_parallel for p in norm.parameters())


def test_further_arguments_of_megatrons_norms_are_accepted():
    assert LocalNorm(config(), SIZE, 1e-5, zero_centered_gamma=False, tp_group=None).eps == 1e-5


def test_norm_that_needs_transformer_engine_is_refused_with_the_choices():
    settings = config()
    settings.normalization = "L2Norm"
    with pytest.raises(
        ConfigError,
        match=r"^normalization 'L2Norm' is not available without Transformer Engine; use RMSNorm "
        r"or LayerNorm\.$",
    ):
        LocalNorm(settings, SIZE)


def test_zero_centered_gamma_is_refused_with_the_flag():
    settings = config(normalization="LayerNorm")
    settings.layernorm_zero_centered_gamma = True
    with pytest.raises(
        ConfigError,
        match=r"^--apply-layernorm-1p needs .*, which is not in use; leave it out\.$",
    ):
        LocalNorm(settings, SIZE)
