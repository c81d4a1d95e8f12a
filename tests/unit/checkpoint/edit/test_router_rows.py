"""Which rows of a router's tensors are experts', against a list that was written by hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.checkpoint.edit.router_rows import router_rows
from moe_megatron.config import MoEConfig, RouterConfig
from moe_megatron.errors import CheckpointError
from moe_megatron.routing import own_router, resolve

EXPERTS, HIDDEN = 4, 8
PLAIN = {"weight": 0, "bias": 0, "expert_bias": 0}


def rows(router: Any, saved: Mapping[str, tuple[int, ...]] | None = None) -> Mapping[str, int]:
    moe = resolve(MoEConfig(num_experts=EXPERTS, router=router))
    return router_rows(moe, HIDDEN, saved or {})


@pytest.mark.parametrize(
    ("router", "wanted"),
    [
        ("top_k", {}),
        ("noisy_top_k", {"gate.noise": 0}),
        ({"name": "zero_computation", "null_experts": 3, "copy_experts": 2}, {"weight": 5}),
        ({"name": "hierarchical", "groups": EXPERTS, "groups_per_token": 2}, {}),
        ("cosine", {}),
        ("query_key", {}),
        ("loss_free", {"state.bias": 0}),
        ("expert_threshold", {"state.cutoff": 0}),
    ],
)
def test_a_row_of_each_expert_is_found(router: Any, wanted: Mapping[str, int]) -> None:
    assert rows(router) == PLAIN | wanted


OWN = """
from moe_megatron.routing import Gate, Parameter, Routing, register_router


def gate(hidden_TH, *, weight, turned):
    return hidden_TH @ (weight + turned.T).T


def parameters(num_experts, hidden_size):
    turned = Parameter((hidden_size, num_experts)) if %s else Parameter((num_experts, hidden_size))
    return {"weight": Parameter((num_experts, hidden_size)), "turned": turned}


@register_router("mine", gate=Gate(gate, parameters))
def mine(logits_TE, *, top_k):
    weights_TK, indices_TK = logits_TE.softmax(-1).topk(top_k)
    return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])
"""


def test_code_of_ones_own_is_asked_once_it_was_given(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN % False)
    assert rows(own_router(f"{file}:mine")) == PLAIN | {"gate.turned": 0}
    file.write_text(OWN % True)
    with pytest.raises(CheckpointError, match=r"gate.turned of the router 'mine.py:mine' has"):
        rows(own_router(f"{file}:mine"))


def test_code_that_was_not_given_is_guessed_at_or_asked_for() -> None:
    noted = RouterConfig(name="mine.py:mine", sha256="0" * 64)
    matrix = {"weight": (EXPERTS, HIDDEN)}
    states = {"state.bias": (EXPERTS,), "state.step": (1,)}
    assert rows(noted, {**matrix, **states}) == PLAIN | {"state.bias": 0}
    for saved in ({**matrix, "gate.noise": (EXPERTS, HIDDEN)}, {"weight": (EXPERTS + 1, HIDDEN)}):
        with pytest.raises(CheckpointError, match=r"own_router\('PATH/mine.py:mine'\)"):
            rows(noted, saved)
