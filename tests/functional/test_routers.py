"""Every router that comes with the package trains alike in the engines, however it is run.

And the suite that says so, which users run on their own routers, finds what is wrong with others.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from moe_megatron.errors import ConfigError
from moe_megatron.routing import Routing, find_router, registered_router
from moe_megatron.testing import RouterError, check_router
from moe_megatron.testing.engines import problems, train
from moe_megatron.testing.ways import ENGINES, Case, Found, ways_for
from tests.built_in import ROUTERS

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1800)]

DECISIVE = ("cosine", "hash", "relu", "zero_computation")
"""Of each thing that an engine does for a router, one: a gate, token ids, a state and a loss of the
batch, and copies. `test_multi_token_prediction.py` has one whose experts depend on the batch."""


def trained(routers: Sequence[str], engines: Sequence[str]) -> dict[str, Found]:
    """All of them, in the same processes."""
    cases = {name: Case(router=find_router(name)) for name in routers}
    return train(cases, ways_for(engines))


@pytest.fixture(scope="module")
def decisive() -> dict[str, Found]:
    return trained(DECISIVE, ("tp2-ep2", "recompute"))


@pytest.mark.parametrize("router", DECISIVE)
def test_router_trains_alike_with_its_experts_and_matrices_spread(
    router: str, decisive: dict[str, Found]
) -> None:
    assert list(problems(Case(router=find_router(router)), decisive[router])) == []


def test_what_ranks_hand_back_has_nothing_of_megatron(decisive: dict[str, Found]) -> None:
    """Else reading it would import Megatron, before it is prepared for this machine."""
    for trained in decisive["hash"].values():
        assert [name for name, it in trained.weights.items() if vars(it)] == []


@pytest.fixture(scope="module")
def all_of_them(chosen: Callable[[str], list[str]]) -> dict[str, Found]:
    together = {"ep2", "tp2"}  # four ranks have both
    return trained(chosen("each"), (*(it for it in ENGINES if it not in together), "tp2-ep2"))


@pytest.mark.deep
@pytest.mark.parametrize("each", ROUTERS)
def test_every_router_trains_alike_in_every_engine(
    each: str, all_of_them: dict[str, Found]
) -> None:
    assert list(problems(Case(router=find_router(each)), all_of_them[each])) == []


# --- what the suite finds ------------------------------------------------------------------------

DEEP = pytest.mark.deep
WRONG: list[Any] = [
    ("faulty_rank", ("ep2",), "under 'ep2' the loss of step . is .*, and .* in one process"),
    pytest.param("faulty_first_pass", ("recompute",), "under 'recompute' the loss", marks=DEEP),
    pytest.param("faulty_loss", ("accumulation",), "under 'accumulation' the", marks=DEEP),
    pytest.param("faulty_sums", ("accumulation",), "under 'accumulation' the", marks=DEEP),
    ("faulty_rows", (), "the order of tokens changes their experts"),
    ("faulty_size", (), "the number of tokens changes their experts"),
    ("faulty_state", (), "it changes its state while it routes"),
]


@pytest.mark.parametrize(("router", "engines", "expected"), WRONG)
def test_what_is_wrong_is_found_and_named(
    router: str, engines: tuple[str, ...], expected: str
) -> None:
    from tests.functional import faulty_routers  # noqa: F401  # registers them

    with pytest.raises(RouterError, match=f"the router '{router}' .* fails in .*: .*{expected}"):
        check_router(router, engines=engines)


def sharp(logits_TE: Any, *, top_k: int, sharpness: float = 1.0) -> Routing:
    weights_TK, indices_TK = (sharpness * logits_TE).softmax(-1).topk(top_k)
    return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])


def test_what_other_processes_cannot_know_is_refused() -> None:
    with registered_router("mine", sharp), pytest.raises(ConfigError, match="does not register"):
        check_router("mine", engines=("recompute",))
    with pytest.raises(ConfigError, match="there is no engine 'ep3' to check a router in"):
        check_router("top_k", engines=("ep3",))


def test_options_reach_the_engines() -> None:
    check_router("top_k", top_k=1, engines=(), score_function="sigmoid")
