"""Configuration files: bases, errors that name the file, and the way back to YAML."""

import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe_megatron.config import (
    RunConfig,
    apply_overrides,
    dump_yaml,
    list_presets,
    load_config,
    parse_override,
)
from moe_megatron.config.loader import list_tables
from moe_megatron.errors import ConfigError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_load_file_keeps_defaults_and_reads_values(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", "moe:\n  top_k: 4\ntraining:\n  learning_rate: 1e-3\n")
    config = load_config(path)
    assert config.moe.top_k == 4
    assert config.training.learning_rate == 0.001
    assert config.model == RunConfig().model
    assert config.preset is None


def test_load_empty_file_is_the_default(tmp_path: Path) -> None:
    assert load_config(write(tmp_path / "run.yaml", "# nothing\n")) == RunConfig()


def test_load_yaml_none_is_text(tmp_path: Path) -> None:
    text = "moe: {load_balancing: none}\ntraining: {recompute: none}\n"
    config = load_config(write(tmp_path / "run.yaml", text))
    assert (config.moe.load_balancing, config.training.recompute) == ("none", "none")


def test_load_base_chain_lays_differences_over_each_other(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "a.yaml", "base: demo_moe\nmoe: {top_k: 4}\nmegatron: {x: 1, y_z: 2}\n")
    write(tmp_path / "deep" / "b.yaml", "base: ../a.yaml\nmegatron: {x: null, y-z: 3, w: 4}\n")
    config = load_config(tmp_path / "deep" / "b.yaml")
    assert config.preset == "demo_moe"
    assert config.parallel.expert_parallel_size == 2
    assert config.moe.top_k == 4
    assert config.megatron == {"y-z": 3, "w": 4}


def test_load_base_circle_is_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "base: b.yaml\n")
    second = write(tmp_path / "b.yaml", "base: ./a.yaml\n")
    message = f"the bases form a circle: {first} -> {second} -> {first}; remove the 'base' of one."
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(first)


def test_load_missing_base_names_the_file_that_asks(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", "base: demo_mo\n")
    message = (
        f"{path}: base 'demo_mo' is neither a file nor a preset. Did you mean 'demo_moe'? "
        "Presets are: deepseek_v3, deepseek_v3_tiny, demo_dense, demo_moe,"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(path)


def test_load_unknown_name_lists_presets_and_the_nearest() -> None:
    message = "'mixtral_7b' is neither a file nor a preset. Did you mean 'mixtral_8x7b'? Presets"
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config("mixtral_7b")


def test_load_list_of_bases_lays_later_ones_over_earlier_ones(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "moe: {top_k: 4, num_experts: 16}\nmodel: {num_layers: 3}\n")
    write(tmp_path / "b.yaml", "base: test_tiny\nmoe: {num_experts: 32}\n")
    config = load_config(write(tmp_path / "c.yaml", "base: [a.yaml, b.yaml]\nmoe: {top_k: 8}\n"))
    assert (config.moe.top_k, config.moe.num_experts, config.model.num_layers) == (8, 32, 2)
    with pytest.raises(ConfigError, match="base needs the name of a preset or file, not 3"):
        load_config(write(tmp_path / "d.yaml", "base: [a.yaml, 3]\n"))


def test_load_mapping_is_a_file_without_a_name() -> None:
    config = load_config({"base": "test_tiny", "moe": {"top_k": 1}})
    assert (config.preset, config.moe.top_k, config.moe.num_experts) == ("test_tiny", 1, 4)
    with pytest.raises(ConfigError, match=r"the table: unknown key 'topk' .* Did you mean 'top_k'"):
        load_config({"moe": {"topk": 1}})


def test_load_table_of_an_architecture_is_a_base_that_is_not_listed() -> None:
    assert set(list_tables()) & set(list_presets()) == set()
    assert load_config("architectures/olmoe").model.qk_norm_scope == "all_heads"


def test_load_wrong_key_in_a_base_names_the_base(tmp_path: Path) -> None:
    base = write(tmp_path / "base.yaml", "moe: {topk: 2}\n")
    path = write(tmp_path / "run.yaml", "base: base.yaml\n")
    message = f"{base}: unknown key 'topk' in section 'moe'. Did you mean 'top_k'?"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("moe:\n  top_k: [1\n", "line 3 is not valid YAML: "),
        ("moe:\n\ttop_k: 1\n", "line 2 is not valid YAML: found character"),
        ("a: \x01\n", "the text is not valid YAML: unacceptable character #x0001"),
        ("a: 2024-13-45\n", "the text is not valid YAML: month must be in 1..12"),
        ("a: !!python/object:os.system {}\n", "line 1 is not valid YAML: could not determine a"),
        ("- 1\n", "the file needs a mapping of sections, such as 'model:', at its top."),
        ("moe: {}\ndata: {}\nmoe: {}\n", "line 3 repeats the key 'moe'; keep one."),
        ("moe:\n  top_k: 1\n  top_k: 2\n", "line 3 repeats the key 'top_k'; keep one."),
        ("base: 3\n", "base needs the name of a preset or file, not 3."),
        ("moe: {top_k: two}\n", "moe.top_k needs a whole number, not 'two' (text)."),
        ("moe: {top_k: 0}\n", "moe.top_k must be at least 1, not 0."),
        ("training: {precision: no}\n", "training.precision needs 'fp32', 'bf16', 'fp8' or 'auto'"),
    ],
)
def test_load_wrong_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "run.yaml", text)
    with pytest.raises(ConfigError, match=re.escape(f"{path}: {message}")):
        load_config(path)


def test_load_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"run_dir: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin.yaml' is not UTF-8 text; save it as UTF-8\."):
        load_config(path)


def test_parse_override_reads_the_value_as_yaml() -> None:
    assert parse_override("moe.top_k=4") == ("moe.top_k", 4)
    assert parse_override("data.paths=[a, b]") == ("data.paths", ["a", "b"])
    assert parse_override("moe.num_experts=null") == ("moe.num_experts", None)
    assert parse_override("run_dir=a=b") == ("run_dir", "a=b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("moe.top_k", "an override needs the form section.field=value, such as moe.top_k=4, not"),
        ("=4", "an override needs the form section.field=value"),
        ("data.paths=[a", "override 'data.paths=[a': line 1 is not valid YAML"),
    ],
)
def test_parse_override_wrong_form_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_override(text)


@pytest.mark.parametrize("preset", list_presets())
def test_dump_preset_loads_back_equal(preset: str, tmp_path: Path) -> None:
    config = load_config(preset)
    assert load_config(write(tmp_path / "config.yaml", dump_yaml(config))) == config


TEXT = st.text(st.characters(codec="utf-8"), min_size=1)
FLAG = st.from_regex(r"[a-z][a-z-]*", fullmatch=True)
POSITIVE = st.floats(min_value=1e-12, max_value=1e12)
SCALAR = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "model.norm_epsilon": POSITIVE,
        "model.num_query_groups": st.none() | st.sampled_from([1, 2, 4, 8]),
        "moe.capacity_factor": st.none() | POSITIVE,
        "moe.layer_frequency": st.integers(1, 9) | st.just((1, 0, 1, 0)),
        "moe.router_dtype": st.sampled_from(["fp32", "fp64", None]),
        "data.paths": st.lists(TEXT, min_size=1).map(tuple),
        "data.cache_dir": st.none() | TEXT,
        "training.weight_decay": st.integers(0, 3) | POSITIVE,
        "parallel.sequence_parallel": st.none() | st.booleans(),
        "checkpoint.save_interval": st.none() | st.integers(1),
        "run_dir": TEXT,
        "megatron": st.dictionaries(FLAG, SCALAR | st.lists(SCALAR).map(tuple)),
    },
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(overrides=OVERRIDES)
def test_dump_any_configuration_loads_back_equal(overrides: dict[str, object]) -> None:
    config = apply_overrides(RunConfig(), overrides)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "config.yaml", dump_yaml(config))
        assert load_config(path) == config
