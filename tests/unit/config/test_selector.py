"""Words that name parameters."""

from typing import Any

import pytest

from moe_megatron.config import RunConfig, apply_overrides, load_config
from moe_megatron.config.finetune import RATES, FinetuneConfig
from moe_megatron.config.parameter_roles import ROLES, ParameterPlace, Role, role_of
from moe_megatron.config.resume import refused_changes
from moe_megatron.config.selector import Selector, canonical
from moe_megatron.errors import ConfigError

_LAYER = "decoder.layers.3."
_NAMES: dict[str, Role] = {
    "embedding.word_embeddings.weight": "embeddings",
    "embedding.position_embeddings.weight": "embeddings",
    "output_layer.weight": "output",
    "decoder.final_layernorm.weight": "norms",
    f"{_LAYER}input_layernorm.weight": "norms",
    f"{_LAYER}self_attention.linear_qkv.layer_norm_weight": "norms",
    f"{_LAYER}self_attention.q_layernorm.weight": "norms",
    f"{_LAYER}self_attention.linear_qkv.weight": "attention",
    f"{_LAYER}self_attention.linear_q_down_proj.weight": "attention",
    f"{_LAYER}self_attention.core_attention.softmax_offset": "attention",
    f"{_LAYER}mlp.router.weight": "router",
    f"{_LAYER}mlp.router.gate.scale": "router",
    f"{_LAYER}mlp.experts.local_experts.7.linear_fc1.weight": "experts",
    f"{_LAYER}mlp.experts.local_experts.7.norm.weight": "experts",
    f"{_LAYER}mlp.experts.linear_fc1.weight7": "experts",
    f"{_LAYER}mlp.shared_experts.linear_fc1.weight": "shared_experts",
    f"{_LAYER}mlp.shared_experts.gate_weight": "shared_experts",
    f"{_LAYER}mlp.linear_fc1.weight": "mlp",
    f"{_LAYER}mlp.linear_fc1.layer_norm_weight": "norms",
    "mtp.layers.0.enorm.weight": "norms",
    "mtp.layers.0.eh_proj.weight": "other",
    "mtp.layers.0.mtp_model_layer.mlp.router.weight": "router",
}
_EXPERT = ParameterPlace(f"{_LAYER}mlp.experts.local_experts.7.linear_fc1.weight", 4, 7)
_QKV = ParameterPlace(f"{_LAYER}self_attention.linear_qkv.weight", 4)
_HEAD = ParameterPlace("output_layer.weight")


@pytest.mark.parametrize("name", _NAMES)
def test_role_is_known_by_the_name(name: str) -> None:
    assert role_of(name) == _NAMES[name]
    assert role_of(f"module.module.{name}") == _NAMES[name]  # as the optimizer sees it


def test_every_role_is_named() -> None:
    assert {*_NAMES.values()} == {*ROLES}
    assert {*RATES} == {*ROLES} - {"other"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("all", [_EXPERT, _QKV, _HEAD]),
        ("all@4", [_EXPERT, _QKV]),
        ("all@1-3,5", []),
        ("experts", [_EXPERT]),
        ("experts@4:7", [_EXPERT]),
        ("experts@2-4:0,5-9", [_EXPERT]),
        ("experts@*:7", [_EXPERT]),
        ("experts@4:6", []),
        ("experts@3:7", []),
        ("attention@4", [_QKV]),
        ("*.linear_qkv.*", [_QKV]),
        ("*.linear_*", [_EXPERT, _QKV]),
        ("*.linear_*@5", []),
        ("decoder.layers.3.*", [_EXPERT, _QKV]),
        ("output_layer.weight", [_HEAD]),
    ],
)
def test_selector_names(text: str, named: list[ParameterPlace]) -> None:
    selector = Selector.read(text)
    assert [place for place in (_EXPERT, _QKV, _HEAD) if selector.matches(place)] == named
    assert Selector.read(str(selector)) == selector


def test_equal_selections_are_equal_texts() -> None:
    given = ["router", "experts@3,2,1:4,0", " router", "experts@1-3:0,4"]
    assert canonical(given) == ("experts@1-3:0,4", "router")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' names no parameters: unknown word ''"),
        ("expert", "unknown word 'expert'. Did you mean 'experts'?"),
        ("qqqqq", "Write all, router, experts, shared_experts, attention, mlp, embeddings"),
        (
            "router@2:1",
            "single experts of 'router', which only 'experts' have; write experts@LAYERS",
        ),
        ("experts@0", "'experts@0' has '0' where numbers from 1 belong"),
        ("experts@a", "'experts@a' has 'a' where numbers"),
        ("experts@", "'experts@' has '' where numbers"),
        ("experts@2:", "'experts@2:' has '' where numbers from 0 belong"),
        ("experts@5-2", "'experts@5-2' has '5-2' where numbers"),
        ("experts@1-999999", "'experts@1-999999' has '1-999999' where numbers"),
    ],
)
def test_mistake_is_told(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"^finetune\.train: ") as error:
        FinetuneConfig(train=(text,))
    assert message in str(error.value)


def test_frozen_wins_over_trained() -> None:
    finetune = FinetuneConfig(train=("experts", "attention"), freeze=("experts@4:7",))
    assert [finetune.trains(place) for place in (_EXPERT, _QKV, _HEAD)] == [False, True, False]
    assert finetune.freezes
    assert not FinetuneConfig().freezes
    assert all(FinetuneConfig().trains(place) for place in (_EXPERT, _QKV, _HEAD))


def test_rates_are_absolute_or_multiples() -> None:
    finetune = FinetuneConfig(router_learning_rate=1e-4, expert_learning_rate="0.5x")
    assert finetune.factors(2e-3) == pytest.approx({"router": 0.05, "experts": 0.5})
    assert FinetuneConfig().factors(2e-3) == {}


def tiny(**overrides: Any) -> RunConfig:
    return apply_overrides(
        load_config("test_tiny"), {f"finetune.{name}": value for name, value in overrides.items()}
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train": []}, "finetune.train must name something to train"),
        ({"router_learning_rate": 0}, "must be greater than 0; to leave these parameters as they"),
        (
            {"router_learning_rate": "-1x"},
            "needs a number, or a multiple of training.learning_rate",
        ),
        ({"router_learning_rate": "fast"}, "such as 0.1x, not 'fast'."),
        ({"train": ["experts@9"]}, "'experts@9' does not fit this model: it has 2 layers"),
        ({"freeze": ["experts@1:4"]}, "its layers have 4 experts, which count from 0"),
        ({"train": ["shared_experts"]}, "it has no shared experts"),
        ({"freeze": ["all"]}, "finetune.freeze 'all' leaves nothing to train"),
        (
            {"freeze": ["router"], "router_learning_rate": 1e-5},
            "finetune.router_learning_rate (1e-05) has no effect, because finetune.freeze names",
        ),
    ],
)
def test_selection_that_does_not_fit_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny(**overrides).validate()
    assert message in str(error.value)


def test_what_other_models_lack() -> None:
    dense = {"moe.num_experts": None, "finetune.train": ["router"]}
    tied = {"model.tie_embeddings": True, "finetune.train": ["output"]}
    some = {"moe.layer_frequency": [0, 1], "finetune.train": ["router@1"]}
    for overrides, message in ((dense, "dense"), (tied, "write embeddings"), (some, "layer 1 is")):
        with pytest.raises(ConfigError, match=message):
            apply_overrides(tiny(), overrides).validate()


def test_other_flags_for_rates_are_refused() -> None:
    config = apply_overrides(tiny(router_learning_rate=1e-5), {"megatron.decoupled-lr": 1e-3})
    with pytest.raises(ConfigError, match="--decoupled-lr gives learning rates of its own"):
        config.validate()


def test_another_selection_is_resumed_with_a_new_optimizer_alone() -> None:
    saved, wanted = tiny(train=["router"]), tiny(train=["router", "experts"])
    (message,) = map(str, refused_changes(saved, wanted))
    assert "its optimizer holds the state of those parameters that were trained then" in message
    without = apply_overrides(wanted, {"megatron.no-load-optim": True})
    assert list(refused_changes(saved, without)) == []
