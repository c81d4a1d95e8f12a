"""The conformance suite passes what comes with the package, and names what is wrong elsewhere."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_megatron.errors import ConfigError
from moe_megatron.routing import RouterState, Routing, registered_router, router_names
from moe_megatron.routing.top_k import route_top_k
from moe_megatron.testing import RouterError, check_router


@pytest.mark.parametrize("name", router_names())
def test_routers_of_the_package_have_all_properties(name: str) -> None:
    check_router(name)


def good(logits_TE: Tensor, *, top_k: int) -> Routing:
    weights_TK, indices_TK = logits_TE.softmax(-1).topk(top_k)
    return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])


def twice(logits_TE: Tensor, *, top_k: int) -> Routing:
    best = logits_TE.softmax(-1).topk(1)
    both = best.indices.repeat(1, top_k), best.values.repeat(1, top_k)
    return Routing.of_indices(*both, logits_TE.shape[-1])


def without_gradient(logits_TE: Tensor, *, top_k: int) -> Routing:
    return good(logits_TE.detach(), top_k=top_k)


def of_another_precision(logits_TE: Tensor, *, top_k: int) -> Routing:
    return good(logits_TE.double(), top_k=top_k)


def not_a_number(logits_TE: Tensor, *, top_k: int) -> Routing:
    return good(logits_TE * torch.inf, top_k=top_k)


def of_another_expert(logits_TE: Tensor, *, top_k: int) -> Routing:
    routing = good(logits_TE, top_k=top_k)
    return replace(routing, indices=routing.indices.clamp(min=7) + 1)


def of_logits(logits_TE: Tensor, *, top_k: int) -> Any:
    return logits_TE


def varying(logits_TE: Tensor, *, top_k: int) -> Routing:
    probs_TE = logits_TE.softmax(-1)
    return Routing.of_map(probs_TE, probs_TE > 1 / logits_TE.shape[-1])


def drawing(logits_TE: Tensor, *, top_k: int) -> Routing:
    return good(logits_TE + torch.randn_like(logits_TE), top_k=top_k)


def looking_ahead(logits_TE: Tensor, *, top_k: int) -> Routing:
    return good(logits_TE - logits_TE.mean(dim=0), top_k=top_k)


def counting_padding(logits_TE: Tensor, *, top_k: int, padding: Tensor | None) -> Routing:
    return good(logits_TE, top_k=top_k).losing(logits_TE.square().mean())


def measuring_padding(logits_TE: Tensor, *, top_k: int, padding: Tensor | None) -> Routing:
    amount = 0 if padding is None else padding.sum()
    return good(logits_TE + amount * torch.arange(logits_TE.shape[1]), top_k=top_k)


def forgetful(logits_TE: Tensor, *, top_k: int, state: Any) -> Routing:
    return good(logits_TE + state["bias"], top_k=top_k)


BIASED = RouterState(
    first=lambda num_experts: {"bias": torch.zeros(num_experts)},
    sums=lambda num_experts: {"load": torch.zeros(num_experts)},
    updated=lambda state, sums, **_: {"bias": state["bias"] - sums["load"].float()},
)
WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (twice, {}, "it names an expert twice for 24 of 24 tokens"),
    (without_gradient, {}, "there is no gradient"),
    (of_another_precision, {}, "its weights are torch.float64, not those of the logits"),
    (not_a_number, {}, "it returns weights of nan for 24 of 24 tokens, for logits"),
    (of_another_expert, {}, "it names expert 8, where there are 8, counted from 0"),
    (of_logits, {}, "it returns Tensor, not a Routing; end it with"),
    (varying, {}, r"gives a token \d experts, not top_k \(2\); .* fixed_number=False"),
    (drawing, {}, "in training; declare random=True"),
    (drawing, {"random": True}, "it draws random numbers in evaluation"),
    (looking_ahead, {}, "in training a token's experts depend on later tokens"),
    (looking_ahead, {"batch_dependent": "training"}, "in evaluation a token's experts depend"),
    (counting_padding, {}, "padding enters its loss"),
    (measuring_padding, {}, "padding changes the experts of tokens"),
    (forgetful, {"state": BIASED}, r"it observes \{\}, but its state sums up"),
]


@pytest.mark.parametrize(("function", "declared", "expected"), WRONG)
def test_what_is_wrong_is_named(function: Any, declared: dict[str, Any], expected: str) -> None:
    with (
        registered_router("mine", function, **declared),
        pytest.raises(RouterError, match=f"the router 'mine' .*: .*{expected}"),
    ):
        check_router("mine")


def test_a_function_is_found_by_itself() -> None:
    check_router(route_top_k, pre_softmax=True)


def test_a_plain_function_is_checked_and_not_registered() -> None:
    check_router(good)
    with pytest.raises(RouterError, match=r"the router 'varying' \(tests.*\) fails in float32"):
        check_router(varying)
    assert not {"good", "varying"} & {*router_names()}
    with pytest.raises(ConfigError, match="the router 'topk' cannot be read"):
        check_router(torch.topk)
    with registered_router("good", varying), pytest.raises(ConfigError, match="already a router"):
        check_router(good)


def test_a_router_that_declares_what_it_does_passes() -> None:
    with registered_router("mine", looking_ahead, batch_dependent=True):
        check_router("mine")
    with registered_router("mine", varying, fixed_number=False):
        check_router("mine")
