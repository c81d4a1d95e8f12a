"""Several samples in a row of `MoEModel` compute what each would alone.

Logits are compared in float64; losses, and with them gradients, are computed in float32.
"""

import pytest
import torch

from moe_megatron import MoEModel
from moe_megatron.errors import DataError
from moe_megatron.model.inputs import IGNORED_LABEL

LENGTHS = (5, 1, 7, 3)
KINDS = {
    "rope": {},
    "learned positions": {"position_embedding": "learned_absolute", "max_position_embeddings": 16},
    "sinks and windows": {"attention_sinks": True, "sliding_window": {"size": 3}},
    "latent attention": {"latent_attention": {}},
}


def build(**options):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_experts": 4, "num_layers": 2, "num_attention_heads": 2}
    return MoEModel(**shape, vocab_size=50, **options).double()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_those_of_samples_alone(kind):
    model = build(**KINDS[kind])
    samples = [torch.randint(0, 50, (1, length)) for length in LENGTHS]
    packed = torch.cat(samples, dim=1)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    together = model(packed, labels=packed, position_ids=positions)
    together.lm_loss.backward()
    gradients = [it.grad.clone() for it in model.parameters()]
    model.zero_grad()
    alone = [model(sample, labels=sample) for sample in samples]
    torch.testing.assert_close(together.logits, torch.cat([it.logits for it in alone], dim=1))
    predicted = torch.tensor([length - 1.0 for length in LENGTHS])
    loss = (torch.stack([it.lm_loss for it in alone]) * predicted).sum() / predicted.sum()
    torch.testing.assert_close(together.lm_loss, loss)
    loss.backward()
    for packed_gradient, parameter in zip(gradients, model.parameters(), strict=True):
        expected = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        torch.testing.assert_close(packed_gradient, expected, rtol=1e-5, atol=1e-7)


def test_samples_would_see_each_other_without_positions():
    model = build()
    tokens = torch.randint(0, 50, (1, 6))
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    apart = model(tokens, position_ids=positions).logits
    assert not torch.allclose(apart[:, 3:], model(tokens).logits[:, 3:])
    torch.testing.assert_close(apart[:, :3], model(tokens).logits[:, :3])


def test_padding_and_other_rows_go_together_with_samples():
    model = build()
    tokens = torch.randint(0, 50, (2, 6))
    positions = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 0, 1]])
    valid = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]])
    labels = tokens.masked_fill(valid == 0, IGNORED_LABEL)
    output = model(tokens, valid, labels, position_ids=positions)
    alone = model(tokens[:1, :3]).logits
    torch.testing.assert_close(output.logits[:1, :3], alone)
    torch.testing.assert_close(output.logits[1:, 2:4], model(tokens[1:, 2:4]).logits)


@pytest.mark.parametrize(
    "positions",
    [[[1, 2, 3]], [[0, 2, 3]], [[0, 1, 1]], [[0, 1]], [[0.0, 1.0, 2.0]]],
)
def test_positions_that_are_none_are_refused(positions):
    with pytest.raises(DataError, match="position_ids must"):
        build()(torch.zeros(1, 3, dtype=torch.int64), position_ids=torch.tensor(positions))
