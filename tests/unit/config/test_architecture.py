"""The one description of a model: what fields change, and how two models differ."""

from typing import Any

import pytest

from moe_megatron.config import Architecture, ModelConfig, MoEConfig, RunConfig, apply_overrides
from moe_megatron.config.architecture import VOCABULARY, Difference, default_of
from moe_megatron.config.fields import CHANGES, settings_of


def model(**overrides: Any) -> Architecture:
    return apply_overrides(RunConfig(), overrides).architecture


@pytest.mark.parametrize("kind", [ModelConfig, MoEConfig])
def test_every_field_of_a_model_says_what_it_changes(kind: type) -> None:
    assert [".".join(it.path) for it in settings_of(kind) if it.changes is None] == []


def test_names_are_sorted_by_what_they_change() -> None:
    names = {change: set(model().field_names(change)) for change in CHANGES}
    assert "model.hidden_size" in names["tensors"]
    assert "moe.router" in names["function"]
    assert "moe.aux_loss_coef" in names["training"]
    for one in CHANGES:
        for other in CHANGES:
            assert one == other or names[one] & names[other] == {VOCABULARY}


@pytest.mark.parametrize(
    ("overrides", "without"),
    [
        ({"moe.num_experts": None}, "moe.top_k"),
        ({}, "model.ffn_hidden_size"),
        ({}, "model.qk_norm_scope"),
        ({}, "model.max_position_embeddings"),
        ({"model.position_embedding": "none"}, "model.rotary_base"),
    ],
)
def test_fields_that_mean_nothing_in_a_model_are_left_out(
    overrides: dict[str, Any], without: str
) -> None:
    assert without not in set(model(**overrides).field_names(*CHANGES))


def test_null_stands_for_a_value() -> None:
    it = model()
    assert it.value("model.head_dim") == 32
    assert it.value("model.num_query_groups") == 8
    assert it.value("moe.layer_frequency") == (1, 2, 3, 4)
    assert it.value("model.latent_attention.kv_lora_rank") is None
    assert it.value("moe.router.jitter") is None
    assert default_of("model.head_dim") is None


@pytest.mark.parametrize(
    ("overrides", "layers"),
    [
        ({}, (1, 2, 3, 4, 5, 6)),
        ({"moe.layer_frequency": [1, 0, 0, 1]}, (1, 4, 5, 6)),
        ({"moe.layer_frequency": [1, 1, 0, 0]}, (1, 2)),
        ({"moe.num_experts": None}, ()),
    ],
)
def test_prediction_layers_are_of_the_kind_of_the_last_layer_and_numbered_on(
    overrides: dict[str, Any], layers: tuple[int, ...]
) -> None:
    it = model(**{"model.num_prediction_layers": 2, **overrides})
    assert it.routed_layers == layers
    assert it.moe_layers == tuple(number for number in layers if number <= 4)


def differences(ours: Architecture, theirs: Architecture) -> list[Difference]:
    return ours.differences(theirs, ours.field_names("tensors", "function"))


def test_equal_models_written_differently_do_not_differ() -> None:
    explicit = {"model.head_dim": 32, "model.num_query_groups": 8, "moe.layer_frequency": [1] * 4}
    assert differences(model(), model(**explicit)) == []


def test_what_follows_from_another_difference_is_not_named() -> None:
    found = differences(model(), model(**{"model.hidden_size": 512}))
    assert [it.name for it in found] == ["model.hidden_size"]


def test_differences_of_a_router_and_of_a_group_are_named_one_by_one() -> None:
    sharp = model(**{"moe.router.scaling": 2.0, "model.sliding_window": {"size": 8}})
    other = model(**{"moe.router.scaling": 3.0, "model.sliding_window": {"size": 9}})
    assert differences(sharp, other) == [
        Difference(name="model.sliding_window.size", ours=8, theirs=9),
        Difference(name="moe.router.scaling", ours=2.0, theirs=3.0),
    ]
    (mixed,) = differences(model(), model(**{"moe.router": "sparse_mixer"}))
    assert (mixed.name, mixed.ours, mixed.theirs) == ("moe.router.name", "top_k", "sparse_mixer")


def test_a_group_against_none_is_one_difference() -> None:
    (found,) = differences(model(), model(**{"model.sliding_window": {"size": 8}}))
    assert found.name == "model.sliding_window"
    assert found.ours is None
