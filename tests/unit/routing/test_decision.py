"""A routing as it is stored, and its dense forms."""

import torch

from moe_megatron.routing import Routing

PROBS = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]])
MAP = torch.tensor([[True, True, False], [False, True, False], [False, False, False]])


def test_a_map_comes_back_dense() -> None:
    routing = Routing.of_map(PROBS, MAP)
    assert torch.equal(routing.routing_map, MAP)
    assert torch.equal(routing.assigned_map, MAP)
    assert torch.equal(routing.probs, PROBS * MAP)
    assert routing.tokens_per_expert.tolist() == [1, 2, 0]
    assert int(routing.assigned.sum()) == 3


def test_the_experts_of_a_token_stand_best_first() -> None:
    routing = Routing.of_map(PROBS, MAP)
    assert routing.indices[0, :2].tolist() == [0, 1]
    assert routing.indices[1, 0].item() == 1
    assert routing.assigned.tolist() == [[True, True, False], [True, False, False], [False] * 3]


def test_weights_carry_the_gradient_of_what_is_assigned() -> None:
    probs = PROBS.clone().requires_grad_()
    Routing.of_map(probs, MAP).probs.sum().backward()
    assert probs.grad is not None
    assert torch.equal(probs.grad, MAP.float())


def test_what_is_dropped_stays_assigned_and_weighs_nothing() -> None:
    accepted = torch.tensor([[True, False, True], [True, True, True], [True, True, True]])
    routing = Routing.of_map(PROBS, MAP).keeping(accepted)
    assert torch.equal(routing.routing_map, MAP & accepted)
    assert torch.equal(routing.assigned_map, MAP)
    assert torch.equal(routing.probs, PROBS * (MAP & accepted))
    assert int(routing.assigned.sum()) == 3


def test_a_fixed_number_is_all_assigned() -> None:
    indices = torch.tensor([[2, 0], [1, 2]])
    routing = Routing.of_indices(indices, torch.full((2, 2), 0.5), 3)
    assert routing.assigned.all()
    assert torch.equal(routing.routing_map, routing.assigned_map)
    assert routing.tokens_per_expert.tolist() == [1, 1, 2]
