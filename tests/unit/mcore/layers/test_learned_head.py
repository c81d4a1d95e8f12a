"""Losses of learned tokens against those of all tokens, of which a mask keeps the learned ones."""

import pytest
import torch

pytest.importorskip("moe_megatron.mcore")

from moe_megatron.mcore.layers.learned_head import learned_losses

TOKENS, HIDDEN, VOCABULARY = 11, 6, 17


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


class Head:
    """An output layer and a loss, with Megatron's shapes, that note how many tokens they get."""

    def __init__(self) -> None:
        self.hidden = numbers(TOKENS, 1, HIDDEN).requires_grad_()
        self.weight = numbers(VOCABULARY, HIDDEN).requires_grad_()
        self.labels = torch.arange(TOKENS).unsqueeze(0)
        self.rows = 0

    def layer(
        self, hidden: torch.Tensor, weight: torch.Tensor, runtime_gather_output: bool | None
    ) -> tuple[torch.Tensor, None]:
        self.rows = len(hidden)
        return hidden @ weight.t(), None

    @staticmethod
    def loss(labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        log_probs = torch.log_softmax(logits.transpose(0, 1), dim=-1)
        return -log_probs.gather(2, labels.unsqueeze(2)).squeeze(2)

    def learned(self, mask: torch.Tensor) -> torch.Tensor:
        return learned_losses(
            hidden_states=self.hidden,
            output_layer=self.layer,
            output_weight=self.weight,
            labels=self.labels,
            loss_mask=mask,
            runtime_gather_output=None,
            compute_language_model_loss=self.loss,
            scale_logits=lambda logits: logits / 3,
            context=None,
        )

    def all(self, mask: torch.Tensor) -> torch.Tensor:
        logits, _ = self.layer(self.hidden, self.weight, None)
        return self.loss(self.labels, logits / 3)


@pytest.mark.parametrize("learned", [(2,), (0, 3, 4, 10), range(TOKENS), ()], ids=str)
def test_losses_and_gradients_are_those_of_all_tokens(learned) -> None:
    mask = torch.zeros(1, TOKENS)
    mask[0, list(learned)] = torch.linspace(0.5, 1.0, len(learned))
    found = []
    for way in (Head.learned, Head.all):
        head = Head()
        losses = way(head, mask) * mask
        losses.sum().backward()
        assert head.hidden.grad is not None
        assert head.weight.grad is not None
        found.append((losses.detach(), head.hidden.grad, head.weight.grad, head.rows))
    for ours, theirs in zip(found[0][:3], found[1][:3], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert found[0][3] == max(1, len(learned))
    assert found[1][3] == TOKENS
