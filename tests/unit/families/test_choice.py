"""Which Hugging Face family a natively trained model becomes, and what is said where none fits."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from moe_megatron.config import RunConfig, apply_overrides, load_config
from moe_megatron.config.flags import to_flags
from moe_megatron.config.mapping import from_mapping
from moe_megatron.errors import MappingError, MoEError
from moe_megatron.families import FAMILIES, family_of, family_of_run
from moe_megatron.routing import resolve
from moe_megatron.testing import tiny_models

SMALL: dict[str, Any] = {
    "model.num_layers": 3,
    "model.hidden_size": 48,
    "model.num_attention_heads": 6,
    "model.num_query_groups": 2,
}
DENSE = {"moe.num_experts": None}
SIGMOID = {"moe.router.score_function": "sigmoid", "moe.expert_bias": True}


def run_of(**overrides: Any) -> RunConfig:
    return resolved(apply_overrides(RunConfig(), {**SMALL, **overrides}))


def resolved(run: RunConfig) -> RunConfig:
    """With every option of the router, as a run writes it beside its checkpoints."""
    return replace(run, moe=resolve(run.moe))


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({}, "mixtral"),
        ({"model.head_dim": 16, "model.tie_embeddings": False}, "mixtral"),
        ({"model.qk_norm": True}, "qwen3_moe"),
        ({"model.qk_norm": True, "moe.router.pre_softmax": True}, "qwen3_moe"),
        ({"model.qk_norm": True, "moe.layer_frequency": [0, 1, 0]}, "qwen3_moe"),
        (
            {
                "moe.shared_expert_hidden_size": 64,
                "moe.router.pre_softmax": True,
                "moe.shared_expert_gate": True,
            },
            "qwen2_moe",
        ),
        (
            {
                **SIGMOID,
                "moe.expert_hidden_size": 32,
                "moe.shared_expert_hidden_size": 64,
                "moe.layer_frequency": [0, 1, 1],
                "moe.router.scaling": 2.5,
            },
            "glm4_moe",
        ),
        (DENSE, "llama"),
        ({**DENSE, "model.qk_norm": True}, "qwen3"),
        ({**DENSE, "model.qkv_bias": True}, "qwen2"),
    ],
)
def test_family_of_a_run_writes_its_model_and_reads_it_again(
    overrides: dict[str, Any], name: str
) -> None:
    run = run_of(**overrides)
    family = family_of_run(run)
    assert family.name == name
    config = family.hf_config(run)
    assert config["architectures"] == [family.architecture]
    assert family_of(config) is family
    again = from_mapping(family.run_config(config))
    assert again.moe_layers == run.moe_layers
    assert again.data.vocab_size == run.data.vocab_size
    blocks = [b for link in family.links(family.geometry(config), fused=True) for b in link.blocks]
    assert {block.name: block.shape for block in blocks} == shapes_in_transformers(config)


def shapes_in_transformers(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    there = AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(there)
    tied = {"lm_head.weight"} if there.tie_word_embeddings else set()
    return {k: tuple(v.shape) for k, v in model.state_dict().items() if k not in tied}


@pytest.mark.parametrize(
    ("preset", "name"), [("mixtral_8x7b", "mixtral"), ("qwen3_30b_a3b", "qwen3_moe")]
)
def test_presets_become_the_models_they_are_named_after(preset: str, name: str) -> None:
    assert family_of_run(resolved(load_config(preset))).name == name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"moe.router.scaling": 2.0},
            r"mixtral: moe.router.scaling would be none, not 2",
        ),
        (
            {"moe.router": "sparse_mixer"},
            r"moe.router.name would be top_k, not sparse_mixer",
        ),
        ({"model.norm": "LayerNorm"}, r"nearest is mixtral: model.norm would be RMSNorm, not Lay"),
        ({"moe.layer_frequency": [1, 0, 1]}, r"no Hugging Face family can express this model"),
        ({**DENSE, "model.activation": "gelu"}, r"nearest is llama: model.activation would be swi"),
    ],
)
def test_model_that_no_family_holds_names_the_nearest(
    overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(MappingError, match=message):
        family_of_run(run_of(**overrides))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "has no 'model_type'"),
        ({"model_type": "qwen3_mo"}, r"'qwen3_mo' models. Did you mean 'qwen3_moe'\? Known are"),
        ({"model_type": "jamba"}, r"for 'jamba' models\. Known are deepseek_v2, "),
        ({"model_type": "olmo"}, r"for 'olmo' models\. Known are deepseek_v2, "),
        ({"model_type": "mistral3"}, r"for 'mistral3' models\. Known are deepseek_v2, "),
        ({"model_type": "x" * 5000}, r"xxx\.\.\. models\. Known are deepseek_v2, "),
        ({"model_type": ["mixtral"]}, "has no 'model_type'"),
    ],
)
def test_configuration_of_an_unknown_family_is_refused(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(MappingError, match=message):
        family_of(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "config.json of a mixtral model lacks 'hidden_size'"),
        ({"hidden_size": "48"}, "gives hidden_size as '48'; a number is needed"),
        ({"hidden_size": 4.5}, "gives hidden_size as 4.5; a whole number of 0 or more is needed"),
        ({"vocab_size": float("nan")}, "gives vocab_size as nan; a number is needed"),
        ({"num_key_value_heads": 4}, "6 query heads and 4 key/value heads"),
        ({"num_key_value_heads": 0}, "0 key/value heads; at least 1"),
        ({"num_attention_heads": 0, "head_dim": None}, "0 heads; at least 1"),
        ({"num_hidden_layers": 0}, "0 layers; at least 1"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers; at most 4096 are allowed"),
        ({"num_experts_per_tok": 9}, "to 9 of 4 experts"),
        ({"rope_parameters": "plain"}, "rope_parameters as 'plain'; a mapping is needed"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta as 'x'; a number is needed"),
        ({"sliding_window": "far"}, "sliding_window as 'far'; a number is needed"),
    ],
)
def test_broken_configuration_is_named(changes: dict[str, Any], message: str) -> None:
    config = tiny_models.config_of("mixtral") | changes
    with pytest.raises(MappingError, match=message):
        FAMILIES["mixtral"].run_config(config)


def its_own_keys() -> Iterator[tuple[str, list[str]]]:
    """Of each family's first example, the keys that no family before it has."""
    seen: set[str] = set()
    firsts = {family: name for name, (family, _) in reversed(tiny_models.EXAMPLES.items())}
    for name in firsts.values():
        own = [key for key in tiny_models.config_of(name) if key not in seen]
        seen.update(own)
        if own:
            yield name, own


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        *(pytest.param(name, keys, id=f"{name}-own") for name, keys in its_own_keys()),
        *(
            pytest.param(name, None, id=name, marks=pytest.mark.deep)
            for name in tiny_models.EXAMPLES
        ),
    ],
)
def test_nonsense_in_any_key_is_one_of_our_errors(name: str, keys: list[str] | None) -> None:
    original = tiny_models.config_of(name)
    family = family_of(original)
    for key in keys or original:
        for value in ("x", -1, 0, [], {}, float("nan"), 1e30, None, True):
            try:
                config = original | {key: value}
                from_mapping(family_of(config).run_config(config))
                family.limits(config)
            except MoEError:
                continue


def test_changed_run_changes_only_its_keys() -> None:
    config = tiny_models.config_of("qwen3_moe")
    family = FAMILIES["qwen3_moe"]
    run = from_mapping(family.run_config(config))
    changed = apply_overrides(run, {"moe.num_experts": 3, "model.rotary_base": 500000})
    told = family.hf_config(changed, config)
    different = {key for key in told if told[key] != config.get(key)}
    assert different == {"num_local_experts", "rope_parameters"}
    assert told["rope_parameters"]["rope_theta"] == 500000


@pytest.mark.parametrize("name", tiny_models.EXAMPLES)
def test_every_flag_is_one_of_megatron(name: str) -> None:
    from moe_megatron.mcore.loop.arguments import check_flags_exist

    config = tiny_models.config_of(name)
    run = from_mapping(family_of(config).run_config(config))
    check_flags_exist([word for word in to_flags(run) if word.startswith("--")])


def test_alpha_of_rotary_positions_scales_the_base_of_hunyuan_alone() -> None:
    config = tiny_models.config_of("hunyuan_v1_moe")
    family = FAMILIES["hunyuan_v1_moe"]
    assert family.limits(config) == ()
    run = from_mapping(family.run_config(config))
    assert run.model.rotary_base == round(10000.0 * 1000.0 ** (16 / 14))
    told = family.hf_config(apply_overrides(run, {"model.rotary_base": 500000}), config)
    assert told["rope_parameters"] == {"rope_type": "default", "factor": 1.0, "rope_theta": 500000}
    llama = tiny_models.config_of("llama") | {"rope_parameters": config["rope_parameters"]}
    (limit,) = FAMILIES["llama"].limits(llama)
    assert "Megatron has no 'dynamic' rotary positions here" in limit


def test_layers_of_hunyuan_that_differ_are_refused() -> None:
    config = tiny_models.config_of("hunyuan_v1_moe") | {"moe_topk": [2, 1, 2]}
    with pytest.raises(MappingError, match=r"gives layers different numbers of moe_topk, \[2, 1"):
        FAMILIES["hunyuan_v1_moe"].run_config(config)


def test_linear_attention_of_minimax_is_refused() -> None:
    config = tiny_models.config_of("minimax_m2") | {"attn_type_list": [1, 0, 1]}
    with pytest.raises(MappingError, match="has layers of linear attention"):
        FAMILIES["minimax_m2"].run_config(config)


def test_rotated_features_of_minimax_are_a_fraction() -> None:
    config = tiny_models.config_of("minimax_m2")
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e6}
    family = FAMILIES["minimax_m2"]
    assert from_mapping(family.run_config(config)).model.rotary_fraction == 1.0
    run = from_mapping(family.run_config(config | {"rotary_dim": 4}))
    assert run.model.rotary_fraction == 4 / 16


def test_kinds_of_layers_that_are_unknown_are_refused() -> None:
    config = tiny_models.config_of("qwen3_next") | {"layer_types": ["full_attention"] * 4 + ["x"]}
    with pytest.raises(MappingError, match="each of the 5 layers needs linear_attention or full"):
        FAMILIES["qwen3_next"].geometry(config)


def test_indexers_of_predicting_layers_are_kept_too() -> None:
    family = FAMILIES["deepseek_v32"]
    config = tiny_models.config_of("deepseek_v32") | {"num_nextn_predict_layers": 1}
    links = {link.key: link for link in family.links(family.geometry(config))}
    kept = links["hugging_face.layers.4.self_attn.indexer.wk.weight"]
    assert kept.blocks[0].name == "model.layers.4.self_attn.indexer.wk.weight"
    assert "mtp.layers.0.transformer_layer.mlp.router.weight" in links
