"""Routers by name: registration, options, and what they are given."""

import re
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import pytest
import torch

from moe_megatron.config import MoEConfig
from moe_megatron.errors import ConfigError
from moe_megatron.routing import (
    Routing,
    bind,
    find_router,
    register_router,
    registered_router,
    resolve,
    router_names,
)

TOKENS, EXPERTS = 12, 4


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(1))


def nearest(logits_TE: torch.Tensor, *, top_k: int, sharpness: float = 1.0) -> Routing:
    weights_TK, indices_TK = (sharpness * logits_TE).softmax(-1).topk(top_k)
    return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])


@pytest.fixture
def registered() -> Iterator[None]:
    with registered_router("nearest", nearest):
        yield


def given(**context: Any) -> dict[str, Any]:
    return {"hidden": None, "padding": None, "training": False, "expert_bias": None, **context}


@pytest.mark.usefixtures("registered")
def test_a_registered_router_is_found_configured_and_bound(logits: torch.Tensor) -> None:
    moe = resolve(MoEConfig(num_experts=EXPERTS, router="nearest"))
    assert moe.router.to_plain() == {"name": "nearest", "sharpness": 1.0}
    route = bind(MoEConfig(num_experts=EXPERTS, router={"name": "nearest", "sharpness": 3}))
    expected = nearest(logits, top_k=2, sharpness=3.0)
    assert torch.equal(route(logits, **given()).probs, expected.probs)
    assert torch.equal(route.distribution(logits), logits.softmax(-1))
    assert resolve(moe) == moe


def test_a_registration_ends_with_its_context() -> None:
    with registered_router("nearest", nearest):
        assert "nearest" in router_names()
    assert "nearest" not in router_names()


def test_a_cell_that_is_executed_again_replaces_its_router() -> None:
    again = FunctionType(nearest.__code__, globals(), "nearest")
    again.__kwdefaults__ = {"sharpness": 2.0}
    with registered_router("nearest", nearest):
        with registered_router("nearest", again):
            assert find_router("nearest").function is again
        assert find_router("nearest").function is nearest
        with pytest.raises(ConfigError, match=r"already a router 'nearest' \(tests.*test_registry"):
            register_router("nearest")(lambda logits_TE, *, top_k: nearest(logits_TE, top_k=top_k))
    assert "nearest" not in router_names()


def test_routers_of_the_package_register_themselves() -> None:
    assert {"top_k", "sparse_mixer"} <= set(router_names())


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"router": "nearst"}, "there is no router 'nearst'. Did you mean 'nearest'? Routers are "),
        (
            {"router": {"name": "nearest", "sharpnes": 1}},
            "the router 'nearest' has no option 'sharpnes'. Did you mean 'sharpness'?",
        ),
        (
            {"router": {"name": "nearest", "sharpness": "very"}},
            "moe.router.sharpness needs a number, not 'very'",
        ),
        (
            {"router": "nearest", "expert_bias": True},
            "the router 'nearest' does not work with moe.expert_bias (True); leave",
        ),
        (
            {"router": "nearest", "load_balancing": "sinkhorn", "aux_loss_coef": 0},
            "the router 'nearest' does not work with moe.load_balancing (sinkhorn)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve(MoEConfig(**fields))


def test_a_dense_model_needs_no_router() -> None:
    moe = MoEConfig(num_experts=None, router="nowhere")
    assert resolve(moe) is moe


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ConfigError, match=r"there is already a router 'top_k' \(.*top_k\)"):
        register_router("top_k")(nearest)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda *, top_k: None, "must take the logits and then only keyword arguments"),
        (lambda logits, top_k: None, "must take the logits and then only keyword arguments"),
        (lambda logits, *, k: None, "must take the logits and then only keyword arguments"),
        (
            lambda logits, *, top_k, temperature: None,
            "the router 'new' has the argument temperature without a default, which ",
        ),
    ],
)
def test_a_function_that_is_no_router_is_refused(function: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        register_router("new")(function)
    assert "new" not in router_names()


def test_a_router_gets_what_its_signature_names(logits: torch.Tensor) -> None:
    seen: dict[str, Any] = {}

    def curious(
        logits_TE: torch.Tensor, *, top_k: int, hidden: torch.Tensor, training: bool
    ) -> Routing:
        seen.update(hidden=hidden, training=training)
        return nearest(logits_TE, top_k=top_k)

    hidden = torch.ones(TOKENS, 3)
    with registered_router("curious", curious):
        route = bind(MoEConfig(num_experts=EXPERTS, router="curious"))
    route(logits, **given(hidden=hidden, training=True))
    assert seen == {"hidden": hidden, "training": True}
    assert route.uses("hidden")
    assert not route.uses("padding")


def test_balancing_of_a_fixed_number_counts_the_best_scores(logits: torch.Tensor) -> None:
    route = bind(MoEConfig(num_experts=EXPERTS, top_k=2))
    scores = route.distribution(logits)
    chosen = route.balancing_map(scores, route(logits, **given()))
    assert (chosen.sum(-1) == 2).all()
    assert (scores[chosen].view(TOKENS, 2).amin(-1) >= scores.masked_fill(chosen, 0).amax(-1)).all()


def test_balancing_of_different_numbers_counts_the_choice(logits: torch.Tensor) -> None:
    def above(logits_TE: torch.Tensor, *, top_k: int) -> Routing:
        scores_TE = logits_TE.softmax(-1)
        return Routing.of_map(scores_TE, scores_TE > 1 / logits_TE.shape[-1])

    with registered_router("above", above, fixed_number=False):
        route = bind(MoEConfig(num_experts=EXPERTS, router="above"))
        assert not find_router("above").fixed_number
        for fields in ({"token_dispatcher": "flex"}, {"pad_to_capacity": True}):
            with pytest.raises(ConfigError, match=f"does not work with moe.{next(iter(fields))}"):
                resolve(MoEConfig(router="above", capacity_factor=1.0, **fields))
    routing = route(logits, **given())
    chosen = route.balancing_map(route.distribution(logits), routing)
    assert torch.equal(chosen, logits.softmax(-1) > 1 / EXPERTS)
    assert int(routing.assigned.sum()) == int(chosen.sum()) != 2 * TOKENS
