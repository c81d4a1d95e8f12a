"""Plain mappings to configurations, back, and with overrides."""

import re
from typing import Any

import pytest

from moe_megatron.config import RunConfig, apply_overrides, from_mapping, to_mapping
from moe_megatron.errors import ConfigError


def test_from_mapping_empty_is_the_default() -> None:
    assert from_mapping({}) == RunConfig()
    assert from_mapping({"model": None, "megatron": None}) == RunConfig()


def test_to_mapping_holds_yaml_types_only() -> None:
    config = from_mapping({"data": {"paths": ["a", "b"]}, "megatron": {"x": [1, 2]}})
    values = to_mapping(config)
    assert values["data"]["paths"] == ["a", "b"]
    assert values["megatron"] == {"x": [1, 2]}
    assert values["preset"] is None
    assert from_mapping(values) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"moe": {"num_expert": 8}},
            "unknown key 'num_expert' in section 'moe'. Did you mean 'num_experts'?",
        ),
        ({"mo": {}}, "unknown key 'mo'. Did you mean 'moe'?"),
        ({"top_k": 2}, "unknown key 'top_k'. It belongs to section 'moe'."),
        (
            {"model": {"top_k": 2}},
            "unknown key 'top_k' in section 'model'. It belongs to section 'moe'.",
        ),
        (
            {"model": {"run_dir": "x"}},
            "unknown key 'run_dir' in section 'model'. It belongs to the top level of the file.",
        ),
        (
            {"checkpoint": {"zzz": 1}},
            "unknown key 'zzz' in section 'checkpoint'. Known are: save_interval, load, "
            "fallback, async_save, fully_reshardable, save_optimizer, keep_last, keep_every, "
            "keep_best and patience_seconds.",
        ),
        ({1: 2}, "unknown key '1'. Known are: model, moe,"),
        ({"moe": [1]}, "section 'moe' needs a mapping of fields, not the list [1]."),
        ({"moe": {"top_k": "two"}}, "moe.top_k needs a whole number, not 'two' (text)."),
        ({"run_dir": 3}, "run_dir needs text, not 3."),
        (
            {"preset": "demo_moe"},
            "preset 'demo_moe' only notes where a saved configuration came from; to start from "
            "it, write 'base: demo_moe'.",
        ),
    ],
)
def test_from_mapping_wrong_content_is_refused(values: dict[Any, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_mapping(values)


def test_from_mapping_reads_a_run_that_was_saved_without_recovery() -> None:
    values = to_mapping(from_mapping({})) | {"preset": "demo_moe"}
    del values["recovery"]
    assert from_mapping(values).recovery == RunConfig().recovery


def test_apply_overrides_changes_only_what_is_named() -> None:
    config = RunConfig()
    changed = apply_overrides(
        config,
        {
            "moe.num_experts": 16,
            "moe.top_k": 4,
            "training.learning_rate": "1e-3",
            "run_dir": "elsewhere",
            "megatron.manual_gc": True,
        },
    )
    assert (changed.moe.num_experts, changed.moe.top_k) == (16, 4)
    assert changed.training.learning_rate == 0.001
    assert changed.run_dir == "elsewhere"
    assert changed.megatron == {"manual-gc": True}
    assert changed.model == config.model
    assert config == RunConfig()


def test_apply_overrides_together_may_pass_through_what_alone_is_wrong() -> None:
    # top_k 16 alone exceeds the 8 experts of the default.
    changed = apply_overrides(RunConfig(), {"moe.top_k": 16, "moe.num_experts": 32})
    assert changed.moe.top_k == 16


def test_apply_overrides_null_takes_a_flag_back() -> None:
    config = apply_overrides(RunConfig(), {"megatron.manual-gc": True})
    assert apply_overrides(config, {"megatron.manual_gc": None}).megatron == {}


def test_apply_overrides_whole_section_and_field_leaves_the_callers_mapping() -> None:
    section = {"num_experts": 16}
    changed = apply_overrides(RunConfig(), {"moe": section, "moe.top_k": 4})
    assert (changed.moe.num_experts, changed.moe.top_k) == (16, 4)
    assert section == {"num_experts": 16}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("moe.topk", "unknown key 'topk' in section 'moe'. Did you mean 'top_k'?"),
        ("mo.top_k", "unknown key 'mo'. Did you mean 'moe'?"),
        ("run_dir.x", "run_dir needs text, not a mapping."),
        ("moe", "section 'moe' needs a mapping of fields, not 1."),
    ],
)
def test_apply_overrides_wrong_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        apply_overrides(RunConfig(), {name: 1})


def test_apply_overrides_of_one_group_belong_together_in_any_order() -> None:
    kind, factor = {"model.rope_scaling.kind": "llama3"}, {"model.rope_scaling.factor": 4}
    for overrides in ({**kind, **factor}, {**factor, **kind}):
        scaling = apply_overrides(RunConfig(), overrides).model.rope_scaling
        assert scaling is not None
        assert (scaling.kind, scaling.factor) == ("llama3", 4.0)
    router = {"moe.router": "sparse_mixer", "moe.router.jitter": 0.1}
    plain = apply_overrides(RunConfig(), router).moe.router.to_plain()
    assert plain == {"name": "sparse_mixer", "jitter": 0.1}


def test_apply_overrides_a_router_of_another_name_keeps_no_option() -> None:
    sigmoid = apply_overrides(RunConfig(), {"moe.router.score_function": "sigmoid"})
    more = apply_overrides(sigmoid, {"moe.router.scaling": 2.5})
    assert more.moe.router.options == {"score_function": "sigmoid", "scaling": 2.5}
    other = apply_overrides(sigmoid, {"moe.router": "sparse_mixer"})
    assert other.moe.router.to_plain() == {"name": "sparse_mixer"}


def test_apply_overrides_null_takes_a_group_back() -> None:
    windowed = apply_overrides(RunConfig(), {"model.sliding_window.size": 8})
    assert windowed.model.sliding_window is not None
    assert apply_overrides(windowed, {"model.sliding_window": None}) == RunConfig()
