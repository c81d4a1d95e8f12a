"""Every number that a router or an expert takes has a range, and is held to it."""

import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
import torch

from moe_megatron import MoEModel
from moe_megatron.config import ExpertConfig, MoEConfig, RouterConfig, Within
from moe_megatron.config.conform import annotations_of, ranges_of
from moe_megatron.errors import ConfigError
from moe_megatron.experts import expert_builder, expert_names, find_expert, register_expert
from moe_megatron.routing import (
    LoadBalancer,
    Routing,
    bind,
    find_router,
    register_router,
    resolve,
    router_names,
)

OWN = """\
from typing import Annotated

import torch
from moe_megatron.config import Within
from moe_megatron.routing import Routing


def sharp(logits_TE, *, top_k, sharpness: Annotated[float, Within(above=0, most=4)] = 1.0):
    weights_TK, indices_TK = (sharpness * logits_TE).softmax(-1).topk(top_k)
    return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])


def never(logits_TE, *, top_k, sharpness: Annotated[float, Within(above=0)] = 0.0):
    return sharp(logits_TE, top_k=top_k)


class Thin(torch.nn.Module):
    def __init__(self, hidden_size, intermediate_size, rank: Annotated[int, Within(least=1)] = 2):
        super().__init__()
        self.matrix = torch.nn.Linear(hidden_size, hidden_size)

    def forward(self, x):
        return self.matrix(x)
"""


def of_the_package() -> Iterator[tuple[RouterConfig | ExpertConfig, type]]:
    """Routers and experts that come with the package, with their options."""
    for name in router_names():
        router = find_router(name)
        if router.function.__module__.startswith("moe_megatron."):
            yield RouterConfig(name=name), router.options
    for name in expert_names():
        if name != "mlp" and find_expert(name).build.__module__.startswith("moe_megatron."):
            yield ExpertConfig(name=name), find_expert(name).options


def numbers() -> Iterator[tuple[RouterConfig | ExpertConfig, type, str]]:
    for choice, options in of_the_package():
        for field in fields(options):
            kind = annotations_of(options)[field.name]
            if {int, float} & {kind, *get_args(kind)}:
                yield choice, options, field.name


def refusal(choice: RouterConfig | ExpertConfig, option: str, value: object) -> str:
    """What is said of an option when what has it is built; "" if nothing."""
    try:
        named = type(choice)(name=choice.name, options={option: value})
        if isinstance(named, RouterConfig):
            find_router(named).configured(named)
        else:
            expert_builder(MoEConfig(expert=named))
    except ConfigError as error:
        return str(error)
    return ""


def outside(range_: Within, whole: bool) -> Iterator[float]:
    """Numbers just outside of each limit."""
    step = 1 if whole else 1e-6
    yield from (it - step for it in (range_.least,) if it is not None)
    yield from (it + step for it in (range_.most,) if it is not None)
    yield from (it for it in (range_.above, range_.below) if it is not None)


def test_every_number_declares_a_range() -> None:
    missing = [
        f"{choice.FIELD} {choice.name}: {name}"
        for choice, options, name in numbers()
        if name not in ranges_of(options)
    ]
    assert missing == []
    assert len(list(numbers())) > 20


@pytest.mark.parametrize(
    ("choice", "options", "name"),
    [pytest.param(*it, id=f"{it[0].name}.{it[2]}") for it in numbers()],
)
def test_a_number_outside_its_range_is_refused(
    choice: RouterConfig | ExpertConfig, options: type, name: str
) -> None:
    range_ = ranges_of(options)[name]
    kind = annotations_of(options)[name]
    whole = int in {kind, *get_args(kind)}
    values = list(outside(range_, whole))
    assert values
    for value in values:
        given = int(value) if whole else float(value)
        assert refusal(choice, name, given) == (
            f"{choice.FIELD}.{name} must be {range_}, not {given}."
        )
    for value in (math.nan, math.inf, -math.inf):
        assert refusal(choice, name, value) == (
            f"{choice.FIELD}.{name} needs a finite number, not {value}."
        )
    if not whole:
        assert "a whole number of 4000 bits" in refusal(choice, name, -(2**3999))
    for limit in (range_.least, range_.most):
        if limit is not None:
            assert refusal(choice, name, int(limit) if whole else float(limit)) == ""


@pytest.mark.parametrize(
    ("range_", "words"),
    [
        (Within(least=1), "at least 1"),
        (Within(above=0, most=1), "greater than 0 and at most 1"),
        (Within(least=0, below=0.5), "at least 0 and less than 0.5"),
    ],
)
def test_a_range_says_itself(range_: Within, words: str) -> None:
    assert str(range_) == words


def test_routers_and_experts_of_the_users_own_are_held_to_their_ranges(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    small = {"hidden_size": 16, "num_experts": 4, "num_layers": 1, "num_attention_heads": 2}
    for options, expected in (
        (
            {"router_type": f"{file}:sharp", "router": {"sharpness": 5}},
            r"^moe.router.sharpness must be greater than 0 and at most 4, not 5.0.$",
        ),
        (
            {"router_type": f"{file}:never"},
            r"mine.py, line 13: moe.router.sharpness must be greater than 0, not 0.0.$",
        ),
        (
            {"expert": {"name": f"{file}:Thin", "rank": 0}},
            "^moe.expert.rank must be at least 1, not 0.$",
        ),
    ):
        with pytest.raises(ConfigError, match=expected):
            MoEModel(**small, vocab_size=64, **options)


def test_a_default_outside_of_its_range_is_refused_where_it_is_registered() -> None:
    def wide(logits_TE: Any, *, top_k: int, by: Annotated[int, Within(most=2)] = 3) -> Routing:
        raise NotImplementedError

    def worded(logits_TE: Any, *, top_k: int, by: Annotated[str, Within(most=2)] = "a") -> Routing:
        raise NotImplementedError

    class Wide(torch.nn.Module):
        def __init__(
            self, hidden_size: int, intermediate_size: int, by: Annotated[int, Within(most=2)] = 3
        ) -> None:
            super().__init__()

    with pytest.raises(ConfigError, match=r"^moe.router.by must be at most 2, not 3.$"):
        register_router("wide")(wide)
    with pytest.raises(ConfigError, match=r"moe.router.by declares a range, at most 2, but is"):
        register_router("worded")(worded)
    with pytest.raises(ConfigError, match=r"^moe.expert.by must be at most 2, not 3.$"):
        register_expert("wide")(Wide)
    assert not {"wide", "worded"} & {*router_names(), *expert_names()}


@pytest.mark.parametrize("top_k", [1, 3])
def test_gshard_is_refused_another_number_of_experts_before_it_routes(top_k: int) -> None:
    moe = MoEConfig(num_experts=4, top_k=top_k, router="gshard")
    for build in (resolve, bind):
        with pytest.raises(ConfigError, match=f"needs moe.top_k 2 and .*, not {top_k} and 4"):
            build(moe)


def test_a_balancers_number_is_held_to_the_range_of_its_router() -> None:
    balancer = LoadBalancer("gshard", second_expert_threshold=2.0)
    with pytest.raises(ConfigError, match=r"second_expert_threshold must be .* at most 1, not 2.0"):
        MoEModel(hidden_size=16, num_experts=4, num_layers=1, load_balancer=balancer)
