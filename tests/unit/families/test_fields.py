"""Fields of configurations are used, checked or irrelevant, and mean what transformers says."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import pytest

from moe_megatron.config.mapping import from_mapping
from moe_megatron.errors import MappingError, MoEError
from moe_megatron.families import FAMILIES, Family, family_of
from moe_megatron.families import fields as config_fields
from moe_megatron.testing import tiny_models
from tests.examples import FEW, FIRST, deep_but

WINDOWS = {"sliding_window": 16, "use_sliding_window": True}
GROUPS = {"n_group": 2, "topk_group": 1}
"""Changes of a configuration with which more of its keys matter."""


class Recorded(Mapping[str, Any]):
    """A configuration that knows which of its keys were read."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config, self.read = config, set[str]()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return self._config[key]

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return key in self._config

    def __iter__(self) -> Iterator[str]:
        return iter(self._config)

    def __len__(self) -> int:
        return len(self._config)


def transformers_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with everything that transformers adds to it."""
    from transformers import AutoConfig

    kind = config["model_type"]
    found = AutoConfig.for_model(**{**config, "model_type": FAMILIES[kind].computed_by or kind})
    return {**found.to_dict(), "model_type": kind}


def default_config(family: Family) -> dict[str, Any]:
    return transformers_config({"model_type": family.name})


@pytest.mark.parametrize("name", FAMILIES)
def test_every_field_of_transformers_is_used_checked_or_irrelevant(name: str) -> None:
    family = FAMILIES[name]
    known = {key for key in default_config(family) if not key.startswith("_")}
    known |= type_fields(family)
    assert known - family.listed == set(), "list these in the family's table (families/fields.py)"


def type_fields(family: Family) -> set[str]:
    """Names that the class takes, some of which it writes under another name."""
    import dataclasses

    from transformers import CONFIG_MAPPING

    return {
        field.name
        for field in dataclasses.fields(CONFIG_MAPPING[family.computed_by or family.name])
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_no_field_is_listed_twice_and_every_reason_is_given(name: str) -> None:
    family = FAMILIES[name]
    irrelevant = {**config_fields.IRRELEVANT, **family.irrelevant}
    assert not family.used & irrelevant.keys()
    assert not {entry.hf for entry in family.checks} & irrelevant.keys()
    assert len({entry.hf for entry in family.checks}) == len(family.checks)
    assert all(irrelevant.values())
    assert all(entry.because for entry in family.checks)


@pytest.mark.parametrize("name", FAMILIES)
def test_used_fields_are_those_that_the_table_reads(name: str) -> None:
    family = FAMILIES[name]
    read: set[str] = set()
    for example, (family_name, _) in tiny_models.EXAMPLES.items():
        if family_name == name:
            given = tiny_models.config_of(example)
            less = {key: value for key, value in given.items() if key != "layer_types"}
            way = {"topk_method": "group_limited_greedy"} if name == "deepseek_v2" else {}
            for changes in ({}, WINDOWS, GROUPS | way):
                config = Recorded({**(less if changes else given), **changes})
                family.run_config(config, family.geometry(config, ("model.layers.0.x",)))
                family.limits(config)
                read |= config.read
    other = {key for entry in family.fields for key in entry.other_keys}
    assert family.used - read <= other | {"quantization_config"}
    checked = {entry.hf for entry in family.checks} | {e.same_as for e in family.checks}
    assert read - family.used - checked <= {"model_type"}


def computed(config: Mapping[str, Any]) -> Any:
    """What a configuration means to our table; None if it is refused."""
    try:
        family = family_of(config)
        return from_mapping(family.run_config(config)), family.limits(config)
    except MoEError:
        return None


@pytest.mark.parametrize(
    ("name", "null"),
    deep_but(
        [*product(FIRST, [False]), *product(FEW, [True])], product(sorted(FIRST), [False, True])
    ),
)
def test_absent_field_means_what_it_means_to_transformers(name: str, null: bool) -> None:
    config = tiny_models.config_of(name)
    different = []
    for key in family_of(config).used & config.keys():
        less = {k: v for k, v in config.items() if k != key} | ({key: None} if null else {})
        try:
            there = transformers_config(less)
        except Exception:
            continue  # transformers refuses it
        ours = computed(less)
        if ours is not None and ours != computed(there):
            different.append(key)
    assert different == []


@pytest.mark.parametrize("name", sorted(FIRST))
def test_value_that_is_not_computed_is_refused_by_name(name: str) -> None:
    config = tiny_models.config_of(name)
    for entry in family_of(config).checks:
        given = config | {entry.hf: "other"}
        with pytest.raises(MappingError, match=f"{entry.hf} is 'other', not .*{entry.because}"):
            family_of(config).geometry(given)
        with pytest.raises(MappingError, match=r"\.\.\., not") as raised:
            family_of(config).geometry(config | {entry.hf: "x" * 5000})
        assert len(str(raised.value)) < 600


@pytest.mark.parametrize("name", sorted(FIRST))
def test_defaults_of_checked_fields_are_computed(name: str) -> None:
    family = family_of(tiny_models.config_of(name))
    assert config_fields.check(default_config(family), family.checks) is None


@pytest.mark.parametrize(
    ("name", "changes", "single"),
    [
        ("mixtral", {}, True),
        ("granitemoe", {}, True),
        ("gpt_oss", {}, True),
        ("qwen3_moe", {"norm_topk_prob": True}, True),
        ("qwen3_moe", {"norm_topk_prob": False}, False),
        ("mixtral", {"num_local_experts": 1}, False),
        ("deepseek_v2", {}, False),
    ],
)
def test_weight_of_a_single_expert_is_a_limit_where_it_is_always_1(
    name: str, changes: dict[str, Any], single: bool
) -> None:
    config = tiny_models.config_of(name) | {"num_experts_per_tok": 1} | changes
    said = any("weighs the single expert" in it for it in family_of(config).limits(config))
    assert said == single


def test_groups_of_glm_are_ranked_by_two_experts() -> None:
    config = tiny_models.config_of("glm4_moe-qk-norm")
    family = family_of(config)
    assert family.limits(config) == ()
    (limit,) = family.limits(config | {"num_experts_per_tok": 6})
    assert "ranks groups by their best 3 experts, this model by their best 2" in limit


def test_unknown_field_is_told_and_with_code_of_its_own_refused() -> None:
    config = tiny_models.config_of("mixtral")
    family = family_of(config)
    assert family.remarks(config | {"use_alibi": None, "_commit_hash": "x"}) == ()
    (remark,) = family.remarks(config | {"use_alibi": True})
    assert "config.json has use_alibi, which neither this conversion nor transformers'" in remark
    with pytest.raises(MappingError, match=r"has use_alibi, .* brings code of its own"):
        family.remarks(config | {"use_alibi": True, "auto_map": {"AutoModel": "modeling.X"}})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gpt_oss", {"rope_parameters": None}, "has neither rope_parameters nor rope_scaling"),
        (
            "qwen3",
            {"rope_parameters": {"full_attention": {"rope_theta": 10000.0}}},
            "gives rope_parameters by kind of layer",
        ),
        (
            "gpt_oss",
            {"layer_types": ["chunked_attention"] * 3},
            "gives 'chunked_attention' in layer_types; only layers with",
        ),
        ("gpt_oss", {"layer_types": ["full_attention"]}, "lists 1 layer_types for 3 layers"),
    ],
)
def test_positions_and_windows_that_are_not_computed_are_refused(
    name: str, changes: dict[str, Any], message: str
) -> None:
    config = tiny_models.config_of(name) | changes
    with pytest.raises(MappingError, match=message):
        family_of(config).geometry(config)
