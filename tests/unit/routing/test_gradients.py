"""Gradients of every router that comes with the package, against differences of its outputs.

Scores are computed in float32 whatever comes in, so differences are taken over steps far larger
than its rounding errors. Logits are drawn, and so lie away from ties, where another expert would be
chosen and a gradient means nothing.
"""

import itertools

import pytest
import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck

from moe_megatron.errors import ConfigError
from moe_megatron.routing import find_router
from moe_megatron.testing.conformance import Trial, trial
from tests.built_in import ROUTERS

NOT_THOSE = [("sparse_mixer", True)]
"""In training it has the gradient of other weights than it returns, on purpose, which
test_sparse_mixer.py compares with the published code."""
OPTIONS = {"sparse_mixer": {"jitter": 0.5}}
"""With little, it chooses among one expert, whose weight is 1."""
WITH_ONE = {
    "top_k": {"pre_softmax": True},
    "task_conditioned": {"pre_softmax": True},
    "grouped": {"groups": 1},
    "hierarchical": {"groups_per_token": 1},
    **OPTIONS,
}
WEIGHT_IS_ONE = ("hash", "biased_softmax")
"""The one has no gate; the other is as published, so that such models are what they were."""
FEW = slice(0, 4)
STEP, CLOSE = 1e-3, 1e-3


def outputs(it: Trial, logits_TE: Tensor, training: bool) -> tuple[Tensor, ...]:
    """All that a router computes from logits and that carries a gradient."""
    routing = it.routed(training=training, rows=FEW, logits_TE=logits_TE)
    found = (routing.probs, routing.copied, routing.loss)
    return tuple(x.double() for x in found if x is not None)


def agree(router: str, training: bool) -> bool:
    """Whether they do; a gradient must be there at all."""
    it = trial(router, dtype=torch.float64, **OPTIONS.get(router, {}))
    logits_TE = it.logits(training=training, rows=FEW).detach().requires_grad_()
    squares = sum(x.square().sum() for x in outputs(it, logits_TE, training))
    (gradient,) = torch.autograd.grad(squares, logits_TE)
    assert gradient.any() or router == "hash"  # whose weights are all alike
    return gradcheck(
        lambda them: outputs(it, them, training), logits_TE, eps=STEP, atol=CLOSE, rtol=CLOSE
    )


@pytest.mark.parametrize(
    ("router", "training"),
    [it for it in itertools.product(ROUTERS, (True, False)) if it not in NOT_THOSE],
)
def test_weights_and_loss_have_the_gradients_of_their_differences(
    router: str, training: bool
) -> None:
    assert agree(router, training)


@pytest.mark.parametrize(("router", "training"), NOT_THOSE)
def test_gradient_of_other_weights_is_told_from_that(router: str, training: bool) -> None:
    with pytest.raises(GradcheckError, match="Jacobian mismatch"):
        agree(router, training)


@pytest.mark.parametrize("router", ROUTERS)
def test_one_expert_a_token_gives_the_gate_a_gradient_or_is_refused(router: str) -> None:
    if router in ("gshard", "noisy_top_k"):
        with pytest.raises(ConfigError, match=r"needs moe\.top_k 2"):
            trial(router, top_k=1)
        return
    it = trial(router, top_k=1, **WITH_ONE.get(router, {}))
    for training in (True, False):
        logits_TE = it.logits(training=training).detach().requires_grad_()
        routing = it.routed(training=training, logits_TE=logits_TE)
        (gradient,) = torch.autograd.grad(routing.probs.square().sum(), logits_TE)
        assert (gradient.abs().max() > 1e-3) == (router not in WEIGHT_IS_ONE), training


@pytest.mark.parametrize("router", [name for name in ROUTERS if find_router(name).gate is not None])
def test_parameters_of_a_gate_have_the_gradients_of_its_differences(router: str) -> None:
    it = trial(router, dtype=torch.float64)

    def logits(hidden_TH: Tensor, *tensors: Tensor) -> Tensor:
        torch.manual_seed(0)
        named = dict(zip(it.tensors, tensors, strict=True))
        return it.route.gate_logits(hidden_TH, training=True, **named)

    hidden_TH = it.hidden_TH[FEW].clone().requires_grad_()
    assert gradcheck(logits, (hidden_TH, *it.tensors.values()), fast_mode=True)
