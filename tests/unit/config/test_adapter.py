"""What has an adapter, of what rank and name."""

import pytest

from moe_megatron.config import (
    AdapterConfig,
    apply_overrides,
    from_mapping,
    load_config,
    to_mapping,
)
from moe_megatron.config.adapter import MAGNITUDE, A, B, is_of_adapter
from moe_megatron.config.loader import CONFIG_FILE, dump_yaml
from moe_megatron.config.loading import check_same_run
from moe_megatron.config.parameter_roles import ParameterPlace
from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.experts import resolve

EXPERT = "decoder.layers.1.mlp.experts.local_experts.3.linear_fc1.weight"
QKV = "decoder.layers.0.self_attention.linear_qkv.weight"


def expert(number: int, layer: int = 2) -> ParameterPlace:
    name = f"decoder.layers.{layer - 1}.mlp.experts.local_experts.{number}.linear_fc1.weight"
    return ParameterPlace(name, layer, number)


def test_ranks_are_those_of_the_last_selector_that_fits():
    adapter = AdapterConfig(rank=4, ranks=("experts@2=8", "experts@2:0,3=16"))
    ranks = [adapter.rank_of(it) for it in (expert(0), expert(1), expert(3), expert(3, layer=1))]
    assert ranks == [16, 8, 16, 4]
    assert adapter.rank_of(ParameterPlace(QKV, 1)) == 4
    assert adapter.rank_of(ParameterPlace("decoder.layers.0.mlp.router.weight", 1)) is None
    assert AdapterConfig().rank_of(expert(0)) is None


def test_scale_of_rank_stabilized_adapters_falls_with_the_root_of_the_rank():
    assert AdapterConfig(rank=4, alpha=8).scale(16) == 0.5
    assert AdapterConfig(rank=4, alpha=8, scaling="rank_stabilized").scale(16) == 2.0


@pytest.mark.parametrize(
    ("experts", "shared"), [("own", ()), ("shared_a", (A,)), ("shared", (A, B))]
)
def test_names_of_what_experts_share_have_no_expert(experts, shared):
    adapter = AdapterConfig(rank=4, experts=experts)
    for part in (A, B, MAGNITUDE):
        of_one = f"decoder.layers.1.mlp.experts.local_experts.3.linear_fc1.{part}"
        of_all = f"decoder.layers.1.mlp.experts.linear_fc1.{part}"
        name = adapter.tensor_name(EXPERT, part)
        assert name == (of_all if part in shared else of_one)
        assert is_of_adapter(name)
        assert adapter.tensor_name(QKV, part) == QKV.replace("weight", part)
    assert not is_of_adapter(EXPERT)


WRONG = {
    "rank 0": ({"rank": 0}, "adapter.rank must be at least 1, not 0"),
    "negative": ({"rank": -2}, "adapter.rank must be at least 1, not -2"),
    "alone": ({"alpha": 8.0}, "adapter.alpha has no effect without adapter.rank; set that"),
    "router": ({"rank": 4, "targets": ("router",)}, "names no matrix that can have an adapter"),
    "word": ({"rank": 4, "targets": ("expert",)}, "adapter.targets: .*Did you mean 'experts'"),
    "form": ({"rank": 4, "ranks": ("experts@2",)}, "must be SELECTOR=RANK with a rank of at"),
    "of rank 0": ({"rank": 4, "ranks": ("experts@2=0",)}, "must be SELECTOR=RANK with a rank"),
    "shared": (
        {"rank": 4, "experts": "shared_a", "ranks": ("experts@2:0=8",)},
        "'experts@2:0=8' gives an expert a rank of its own, but with adapter.experts 'shared_a'",
    ),
    "norms of four bits": (
        {"rank": 4, "magnitude": True, "frozen_experts": "nf4"},
        "adapter.magnitude needs the norms of whole matrices in each pass, which adapter.frozen_e",
    ),
    "dropout": ({"rank": 4, "dropout": 1.0}, "adapter.dropout must be at least 0 and less than 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_adapters_are_refused(name):
    fields, message = WRONG[name]
    with pytest.raises(ConfigError, match=message):
        AdapterConfig(**fields)


def test_selectors_must_fit_the_model():
    config = apply_overrides(
        load_config("test_tiny"), {"adapter.rank": 4, "adapter.targets": ["experts@99"]}
    )
    with pytest.raises(ConfigError, match=r"adapter.targets 'experts@99' does not fit this model"):
        config.validate()


def test_run_with_adapters_freezes_and_comes_back_from_its_file():
    config = apply_overrides(load_config("test_tiny"), {"adapter.rank": 4})
    assert (config.freezes, config.states_apart) == (True, True)
    assert from_mapping(to_mapping(config)) == config


@pytest.mark.parametrize("wanted", [{"adapter.rank": 8}, {}], ids=["other", "none"])
def test_checkpoint_with_adapters_is_not_loaded_without_them(tmp_path, wanted):
    base = load_config("test_tiny")
    saved = apply_overrides(base, {"adapter.rank": 4})
    (tmp_path / CONFIG_FILE).write_text(dump_yaml(saved))
    config = apply_overrides(base, {"megatron.finetune": True, **wanted})
    with pytest.raises(CheckpointError, match="holds adapters, which this run would leave out or"):
        check_same_run(tmp_path, config, resolve)
    quiet = {"adapter.rank": 4, "adapter.dropout": 0.5, "megatron.finetune": True}
    check_same_run(tmp_path, apply_overrides(base, quiet), resolve)
