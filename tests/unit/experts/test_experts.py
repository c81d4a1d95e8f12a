"""Kinds of experts by name, what is refused, and pools against a loop over tokens."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moe_megatron.config import ModelConfig, MoEConfig, ParallelConfig, RunConfig
from moe_megatron.errors import ConfigError, TopologyError
from moe_megatron.experts import (
    Expert,
    ExpertPool,
    expert_builder,
    expert_names,
    expert_tensors,
    find_expert,
    register_expert,
    registered_expert,
    resolve,
)
from moe_megatron.model.moe_model import MoEModel
from moe_megatron.routing import Routing

HIDDEN, INNER, EXPERTS, TOP_K = 8, 12, 4, 2
OURS = [it for it in expert_names() if it != "mlp" and "moe_megatron" in find_expert(it).place]


class Doubling(Expert):
    """A matrix, doubled."""

    def __init__(self, hidden_size: int, intermediate_size: int, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = factor
        self.matrix = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.matrix(x)


class Cut(Doubling):
    """Loses a feature."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 1:]


class Counting(Doubling):
    """Saves a whole number."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__(hidden_size, intermediate_size)
        self.register_buffer("seen", torch.zeros(1, dtype=torch.int64))


class Scaled(Doubling):
    """Has a scalar."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__(hidden_size, intermediate_size)
        self.scale = nn.Parameter(torch.tensor(1.0))


class Demanding(Doubling):
    """Wants what nobody gives."""

    def __init__(self, hidden_size: int, intermediate_size: int, depth: int) -> None:
        super().__init__(hidden_size, intermediate_size)


def chosen(tokens: int) -> tuple[Tensor, Routing]:
    """Hidden states and experts for them; the last expert gets none."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(tokens, HIDDEN, generator=generator)
    logits = torch.randn(tokens, EXPERTS - 1, generator=generator)
    weights, indices = logits.softmax(-1).topk(TOP_K)
    return hidden, Routing.of_indices(indices, weights, EXPERTS)


# --- what experts compute ------------------------------------------------------------------------


def gelu(w: dict[str, Tensor], x: Tensor) -> Tensor:
    inner = w["up.weight"] @ x + w["up.bias"]
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    return w["down.weight"] @ inner + w["down.bias"]


def glu(w: dict[str, Tensor], x: Tensor) -> Tensor:
    gate = w["gate.weight"] @ x
    return w["down.weight"] @ (gate / (1 + torch.exp(-gate)) * (w["up.weight"] @ x))


def low_rank(w: dict[str, Tensor], x: Tensor) -> Tensor:
    inner = w["up.1.weight"] @ (w["up.0.weight"] @ x)
    return w["down.1.weight"] @ (w["down.0.weight"] @ (inner / (1 + torch.exp(-inner))))


TWINS: dict[str, Callable[[dict[str, Tensor], Tensor], Tensor]] = {
    "gelu": gelu,
    "glu": glu,
    "low_rank": low_rank,
}


def test_every_kind_has_a_twin() -> None:
    assert sorted(TWINS) == OURS


@pytest.mark.parametrize("name", OURS)
def test_a_pool_is_a_loop_over_tokens_and_their_experts(name: str) -> None:
    torch.manual_seed(0)
    pool = ExpertPool(find_expert(name).build, EXPERTS, HIDDEN, INNER).double()
    hidden, routing = chosen(7)
    hidden = hidden.double().requires_grad_()
    expected = torch.zeros(7, HIDDEN, dtype=torch.float64)
    for token in range(7):
        for slot in range(TOP_K):
            weights = pool[str(int(routing.indices[token, slot]))].state_dict()
            output = TWINS[name](weights, hidden[token].detach())
            expected[token] += routing.weights[token, slot] * output
    output = pool(hidden, routing)
    torch.testing.assert_close(output.detach(), expected, rtol=1e-6, atol=1e-8)
    output.sum().backward()
    # the last expert has no token, and a gradient of zeros all the same
    assert all(it.grad is not None and not it.grad.any() for it in pool["3"].parameters())
    assert all(it.grad is not None and it.grad.any() for it in pool["0"].parameters())


@pytest.mark.parametrize("name", OURS)
def test_a_row_does_not_depend_on_the_others(name: str) -> None:
    torch.manual_seed(0)
    expert = find_expert(name).build(HIDDEN, INNER)
    rows = torch.randn(5, HIDDEN)
    torch.testing.assert_close(expert(rows)[2:3], expert(rows[2:3]))
    assert expert(rows[:0]).shape == (0, HIDDEN)


# --- names and options ---------------------------------------------------------------------------


def test_a_registered_expert_is_found_configured_and_built() -> None:
    with registered_expert("doubling", Doubling):
        moe = resolve(MoEConfig(expert="doubling"))
        assert moe.expert.to_plain() == {"name": "doubling", "factor": 2.0}
        assert resolve(moe) == moe
        builder = expert_builder(MoEConfig(expert={"name": "doubling", "factor": 3}))
        assert builder is not None
        assert builder(HIDDEN, INNER).factor == 3.0
        assert expert_tensors(builder, HIDDEN, INNER) == {"matrix.weight": (HIDDEN, HIDDEN)}
    assert "doubling" not in expert_names()


def test_the_mlp_of_a_model_has_no_builder() -> None:
    assert expert_builder(MoEConfig()) is None
    dense = MoEConfig(num_experts=None, expert="nowhere")
    assert resolve(dense) is dense


def test_a_cell_of_a_notebook_may_be_executed_again() -> None:
    with registered_expert("doubling", Doubling):
        register_expert("doubling")(Doubling)
        with pytest.raises(ConfigError, match=r"already an expert 'doubling' \(.*Doubling\)"):
            register_expert("doubling")(Cut)
    with pytest.raises(ConfigError, match="already an expert 'mlp', the MLP of the model"):
        register_expert("mlp")(Doubling)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"expert": "low_rnk"}, "there is no expert 'low_rnk'. Did you mean 'low_rank'?"),
        (
            {"expert": {"name": "low_rank", "rnk": 1}},
            "the expert 'low_rank' has no option 'rnk'. Did you mean 'rank'?",
        ),
        (
            {"expert": {"name": "glu", "gate": "tanh"}},
            "moe.expert.gate needs 'sigmoid', 'silu', 'gelu', 'relu' or 'linear', not 'tanh'",
        ),
        ({"expert": {"name": "mlp", "rank": 2}}, "the expert 'mlp' has no option 'rank'; model."),
        ({"expert": 3}, "moe.expert needs the name of a kind of expert, or a mapping"),
        (
            {"expert": "glu", "expert_dropout": 0.1},
            "moe.expert_dropout (0.1) looks inside the experts, which moe.expert 'glu' brings",
        ),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve(MoEConfig(**fields))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Demanding, "from options that have defaults, .* not hidden_size, intermediate_size and d"),
        (nn.Linear, "must be built from hidden_size and intermediate_size"),
        (gelu, "the expert 'wrong' must be a class of torch.nn.Module"),
    ],
)
def test_a_class_that_is_no_expert_is_refused(kind: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        register_expert("wrong")(kind)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Counting, r"seen of the expert 'wrong' .* is torch.int64 .* persistent=False"),
        (Scaled, r"scale of the expert 'wrong' .* make a scalar a tensor of the shape \[1\]"),
        (Cut, r"Cut.* was given rows of the shape \[\d+, 32\] and returned \[\d+, 31\]"),
    ],
)
def test_what_an_expert_must_not_be_is_said(kind: type[nn.Module], message: str) -> None:
    with registered_expert("wrong", kind), pytest.raises(ConfigError, match=message):
        MoEModel(hidden_size=32, num_layers=1, expert="wrong")(torch.zeros(1, 4, dtype=torch.int64))


def test_a_pool_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match=r"num_experts \(0\) must be a whole number, at least 1"):
        ExpertPool(Doubling, 0, HIDDEN, INNER)
    with pytest.raises(ConfigError, match=r"must build a torch.nn.Module, not int"):
        ExpertPool(lambda hidden, inner: 3, 2, HIDDEN, INNER)


def test_experts_that_are_modules_are_not_split() -> None:
    run = RunConfig(
        model=ModelConfig(hidden_size=64),
        moe=MoEConfig(num_experts=4, expert="glu"),
        parallel=ParallelConfig(tensor_parallel_size=2),
    )
    with pytest.raises(TopologyError, match=r"'glu' \(moe.expert\) are whole modules.*size to 1"):
        run.validate(2)


# --- in a model ----------------------------------------------------------------------------------


def test_their_first_weights_are_their_own() -> None:
    torch.manual_seed(0)
    model = MoEModel(hidden_size=32, num_layers=1, expert="gelu", init_std=1e-4)
    expert = model.layers[0].moe.experts["0"]
    assert expert.up.weight.abs().max() > 0.05  # what nn.Linear draws, not init_std
    assert expert.up.bias.any()
    assert model.layers[0].attention.q_proj.weight.abs().max() < 1e-3


def test_matrices_of_other_experts_are_not_guessed() -> None:
    model = MoEModel(hidden_size=32, num_layers=1, expert="low_rank")
    with pytest.raises(ConfigError, match=r"kind 'low_rank' \(moe.expert\) need not have gate"):
        model.get_expert_weights()
