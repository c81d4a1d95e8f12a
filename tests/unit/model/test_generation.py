"""A row of a batch is continued as its prompt is alone, whatever stands beside it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_megatron.errors import ConfigError
from moe_megatron.model import MoEModel
from moe_megatron.routing import Routing, registered_router

Build = Callable[..., MoEModel]
LENGTHS = (3, 9, 5, 12)
FORMS: dict[str, dict[str, Any]] = {
    "rotary": {},
    "learned positions": {"position_embedding": "learned_absolute", "max_position_embeddings": 64},
    "normed heads": {"qk_norm": True},
    "shared expert": {"shared_expert_hidden_size": 16},
    "noise of training": {"input_jitter": 0.3, "hidden_dropout": 0.5, "attention_dropout": 0.5},
    "room for all": {"capacity_factor": 4.0, "drop_policy": "position"},
}


def prompts(seed: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Prompts of several lengths; the same padded on the left; and the mask."""
    generator = torch.Generator().manual_seed(seed)
    alone = [torch.randint(0, 61, (length,), generator=generator) for length in LENGTHS]
    ids = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(alone):
        ids[row, -len(prompt) :], mask[row, -len(prompt) :] = prompt, 1
    return alone, ids, mask


def continuations(model: MoEModel, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """What is appended to each row, in a batch and alone."""
    alone, ids, mask = prompts(seed)
    dependent = {"allow_batch_dependent": True}  # what "compete for capacity" is about
    together = model.generate(ids, 8, attention_mask=mask, **dependent)[:, ids.shape[1] :]
    for prompt, row in zip(alone, together, strict=True):
        yield row, model.generate(prompt[None], 8, **dependent)[0, len(prompt) :]


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_row_of_a_batch_is_continued_as_alone(build: Build, options: dict[str, Any]) -> None:
    """In fp64, where no two logits are so near that the order of a sum decides between them."""
    for seed in range(2):
        model = build(seed, **options).double()
        for together, alone in continuations(model, seed):
            assert together.tolist() == alone.tolist()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
@torch.no_grad()
def test_logits_of_a_row_differ_by_rounding_alone(
    build: Build, dtype: torch.dtype, tolerance: float
) -> None:
    model, (alone, ids, mask) = build(init_std=0.1).to(dtype).eval(), prompts(0)
    together = model(ids, attention_mask=mask).logits
    for row, prompt in enumerate(alone):
        logits = model(prompt[None]).logits[0]
        difference = (together[row, -len(prompt) :] - logits).abs().max()
        assert difference <= tolerance * logits.abs().max()


def test_rows_of_a_batch_compete_for_capacity(build: Build) -> None:
    """The one way in which a row depends on the others, and it is no matter of rounding."""
    pairs = [
        pair
        for seed in range(4)
        for pair in continuations(build(seed, capacity_factor=1.0).double(), seed)
    ]
    assert any(together.tolist() != alone.tolist() for together, alone in pairs)


@pytest.mark.parametrize(
    ("router", "options"),
    [
        ("expert_choice", {}),  # its experts choose tokens, but in training alone
        ("base_layers", {}),
        ("top_k", {"capacity_factor": 1.0, "drop_policy": "position"}),
        ("top_k", {"capacity_factor": 2.0}),  # there is room for every token at every expert
    ],
)
def test_what_looks_at_no_later_token_generates(
    build: Build, router: str, options: dict[str, Any]
) -> None:
    model = build(router_type=router, **options)
    assert model.generate(torch.zeros(1, 4, dtype=torch.int64), 2).shape == (1, 6)


def test_what_looks_at_later_tokens_generates_if_it_is_asked_by_name(build: Build) -> None:
    def seer(logits_TE: Tensor, *, top_k: int) -> Routing:
        weights_TK, indices_TK = (logits_TE - logits_TE.mean(0)).softmax(-1).topk(top_k)
        return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])

    ids = torch.zeros(1, 4, dtype=torch.int64)
    with registered_router("seer", seer, batch_dependent=True):
        model = build(router_type="seer")
        with pytest.raises(ConfigError, match="the router 'seer' chooses by all tokens"):
            model.generate(ids, 2)
        assert model.generate(ids, 2, allow_batch_dependent=True).shape == (1, 6)
