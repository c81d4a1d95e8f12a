"""`LoadBalancer` is fields of a configuration, and a method from outside is a row of one table."""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest

from moe_megatron import MoEModel, MoETrainer
from moe_megatron.config import MoEConfig
from moe_megatron.errors import ConfigError
from moe_megatron.routing import (
    LoadBalancer,
    balancing,
    balancing_names,
    find_balancing,
    register_balancing,
    resolve,
)

SHAPE = {"hidden_size": 32, "num_experts": 4, "num_layers": 1, "vocab_size": 280}

METHODS: dict[str, dict[str, Any]] = {
    "auxiliary_loss": {"load_balancing": "aux_loss"},
    "sequence_auxiliary_loss": {"load_balancing": "seq_aux_loss"},
    "global_auxiliary_loss": {"load_balancing": "global_aux_loss"},
    "switch": {
        "load_balancing": "aux_loss",
        "router": "top_k",
        "top_k": 1,
        "capacity_factor": 1.25,
        "drop_policy": "position",
    },
    "gshard": {"load_balancing": "aux_loss", "router": "gshard", "top_k": 2},
    "base_layers": {"load_balancing": "none", "router": "base_layers"},
    "sinkhorn": {"load_balancing": "none", "router": "sinkhorn"},
    "loss_free": {"load_balancing": "none", "router": "loss_free"},
    "quantile": {"load_balancing": "none", "router": "quantile"},
    "none": {"load_balancing": "none"},
}


def moe_of(balancer: Any, **options: Any) -> MoEConfig:
    return MoEModel(**SHAPE, load_balancer=balancer, **options).moe_config


def changed(moe: MoEConfig) -> dict[str, Any]:
    """What differs from a model without a balancer; of a router its name."""
    plain = MoEModel(**SHAPE).moe_config
    found = {
        it.name: getattr(moe, it.name)
        for it in fields(moe)
        if getattr(moe, it.name) != getattr(plain, it.name)
    }
    return {n: value.name if n == "router" else value for n, value in found.items()}


@pytest.mark.parametrize("method", METHODS)
def test_method_becomes_its_fields_and_no_others(method: str) -> None:
    wanted = {n: value for n, value in METHODS[method].items() if n != "router"}
    plain = MoEModel(**SHAPE).moe_config
    moe = moe_of(method)
    assert {name: getattr(moe, name) for name in wanted} == wanted
    assert moe.router.name == METHODS[method].get("router", "top_k")
    assert changed(moe).keys() - {"router"} <= {
        name for name, value in wanted.items() if value != getattr(plain, name)
    }


def test_table_is_what_this_test_knows() -> None:
    assert [it for it in balancing_names() if it != "in_one_file"] == list(METHODS)
    assert all(find_balancing(it).summary for it in balancing_names())


def test_every_argument_is_a_field() -> None:
    balancer = LoadBalancer(
        ("loss_free", "global_auxiliary_loss"),
        aux_loss_coef=0.002,
        z_loss_coef=0.003,
        capacity_factor=1.5,
        drop_tokens=True,
        drop_policy="position",
        routing_top_k=3,
        jitter_noise=0.1,
        expert_dropout=0.2,
        pad_to_capacity=False,
        router_options={"update_rate": 0.01},
    )
    moe = moe_of(balancer)
    assert moe.router.to_plain() == {"name": "loss_free", "update_rate": 0.01}
    assert changed(moe) == {
        "router": "loss_free",
        "load_balancing": "global_aux_loss",
        "aux_loss_coef": 0.002,
        "z_loss_coef": 0.003,
        "capacity_factor": 1.5,
        "drop_policy": "position",
        "top_k": 3,
        "input_jitter": 0.1,
        "expert_dropout": 0.2,
    }


def test_what_a_method_proposes_gives_way() -> None:
    assert moe_of("switch", capacity_factor=2.0).capacity_factor == 2.0
    assert moe_of(LoadBalancer("switch", capacity_factor=2.0)).capacity_factor == 2.0
    assert moe_of(LoadBalancer("switch", drop_tokens=False)).capacity_factor is None
    assert moe_of(LoadBalancer("switch", drop_policy="probs")).drop_policy == "probs"


def test_threshold_reaches_gshard_alone() -> None:
    balancer = LoadBalancer(second_expert_threshold=0.4)
    moe = moe_of(balancer, router_type="gshard")
    assert moe.router.option("second_expert_threshold") == 0.4
    with pytest.raises(ConfigError, match="router here is 'cosine'"):
        moe_of(balancer, router_type="cosine")


@pytest.mark.parametrize("name", ["aux_loss", "seq_aux_loss", "global_aux_loss", "none"])
def test_values_of_the_configuration_are_names_of_methods_too(name: str) -> None:
    assert LoadBalancer(name).fields()["load_balancing"] == name


def test_trainer_takes_a_balancer_and_that_of_the_model_otherwise() -> None:
    def trained(model: MoEModel, **options: Any) -> MoEConfig:
        trainer = MoETrainer(model, tokenizer="demo", **options)
        return trainer._base.moe

    model = MoEModel(**SHAPE, load_balancer="loss_free")
    assert trained(model).load_balancing == "none"
    both = LoadBalancer(("loss_free", "sequence_auxiliary_loss"), z_loss_coef=0.5)
    assert trained(model, load_balancing=both).load_balancing == "seq_aux_loss"
    assert trained(model, load_balancing=both).z_loss_coef == 0.5
    assert trained(model, load_balancing=both).router.name == "loss_free"
    plain = MoEModel(**SHAPE)
    assert trained(plain).load_balancing == "aux_loss"
    assert trained(plain, load_balancing="auxiliary_loss").z_loss_coef == 0.01
    capped = LoadBalancer(capacity_factor=1.5, jitter_noise=0.01)
    assert trained(plain, load_balancing=capped).capacity_factor == 1.5
    assert trained(plain, load_balancing=capped).input_jitter == 0.01


@pytest.fixture
def in_one_file() -> Iterator[None]:
    register_balancing(
        "in_one_file", summary="two groups, and a limit", router={"name": "grouped", "groups": 2},
        fields={"load_balancing": "global_aux_loss"}, defaults={"capacity_factor": 1.0},
    )  # fmt: skip
    try:
        yield
    finally:
        del balancing._METHODS["in_one_file"]


@pytest.mark.usefixtures("in_one_file")
def test_a_method_from_outside_is_known_everywhere() -> None:
    model = MoEModel(**SHAPE, load_balancer="in_one_file")
    moe = model.moe_config
    assert moe.router.to_plain() == {"name": "grouped", "groups": 2}
    assert (moe.load_balancing, moe.capacity_factor) == ("global_aux_loss", 1.0)
    trainer = MoETrainer(model, load_balancing="in_one_file", tokenizer="demo")
    assert trainer._base.moe.capacity_factor == 1.0
    assert resolve(replace(moe, capacity_factor=None)).router == moe.router
    with pytest.raises(ConfigError, match="already a balancing method 'in_one_file'"):
        register_balancing("in_one_file")


def test_a_method_of_unknown_fields_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sets 'aux_los', .* Did you mean 'aux_loss_coef'\?"):
        register_balancing("wrong", fields={"aux_los": 1.0})
    assert "wrong" not in balancing_names()
