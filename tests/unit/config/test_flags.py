"""Fields as Megatron flags and back. Whether the flags exist is tested with Megatron, in mcore."""

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_megatron.config import (
    RouterConfig,
    RunConfig,
    apply_overrides,
    list_presets,
    load_config,
)
from moe_megatron.config.fields import settings_of
from moe_megatron.config.flags import RULES, split_flags, to_flags
from moe_megatron.config.model import Activation, Norm, PositionEmbedding
from moe_megatron.config.moe import TokenDispatcher
from moe_megatron.config.run import SECTIONS
from moe_megatron.config.training import DecayStyle
from moe_megatron.errors import ConfigError

counts = st.integers(1, 10**6)
numbers = st.floats(1e-9, 1e6)
shares = st.floats(0.0, 0.5)

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "model.num_layers": counts,
    "model.hidden_size": st.integers(1, 500).map(lambda n: 16 * n),
    "model.num_attention_heads": st.sampled_from([1, 2, 4]),
    "model.ffn_hidden_size": st.none() | counts,
    "model.max_position_embeddings": st.none() | counts,
    "model.position_embedding": st.sampled_from(get_args(PositionEmbedding)),
    "model.norm": st.sampled_from(get_args(Norm)),
    "model.norm_epsilon": numbers,
    "model.qk_norm": st.booleans(),
    "model.activation": st.sampled_from(get_args(Activation)),
    "model.add_bias": st.booleans(),
    "model.tie_embeddings": st.booleans(),
    "model.qkv_bias": st.booleans(),
    "model.rotary_fraction": st.sampled_from([0.25, 0.5, 1.0]),
    "model.attention_sinks": st.booleans(),
    "model.num_prediction_layers": st.integers(0, 3),
    "model.latent_attention.kv_lora_rank": counts,
    "model.latent_attention.q_lora_rank": st.none() | counts,
    "model.sliding_window.size": counts,
    "model.rope_scaling.kind": st.sampled_from(["linear", "llama3", "yarn"]),
    "model.rope_scaling.factor": counts.map(float),
    "model.rope_scaling.round_range": st.booleans(),
    "model.init_std": numbers,
    "model.hidden_dropout": shares,
    "moe.num_experts": st.none() | st.integers(8, 512),
    "moe.top_k": st.integers(2, 8),
    "moe.expert_hidden_size": st.none() | counts,
    "moe.layer_frequency": st.integers(1, 9)
    | st.lists(st.sampled_from([0, 1]), max_size=6).map(lambda head: (*head, 1)),
    "moe.router_dtype": st.sampled_from([None, "fp32", "fp64"]),
    "moe.router.pre_softmax": st.booleans(),
    "moe.router.expert_groups": st.none() | counts,
    "moe.router.scaling": st.none() | numbers,
    "moe.shared_expert_gate": st.booleans(),
    "moe.aux_loss_coef": numbers,
    "moe.capacity_factor": st.none() | numbers,
    "moe.input_jitter": st.none() | shares,
    "moe.token_dispatcher": st.sampled_from(get_args(TokenDispatcher)),
    "moe.grouped_gemm": st.sampled_from([None, True, False]),
    "data.sequence_length": counts,
    "data.split": st.sampled_from(["95,5,0", "8,1,1", "99.5,0.5,0"]),
    "training.train_steps": st.integers(1000, 10**6),
    "training.learning_rate": st.floats(1e-3, 1.0),
    "training.min_learning_rate": st.floats(0.0, 1e-3),
    "training.decay_style": st.sampled_from(get_args(DecayStyle)),
    "training.seed": st.integers(1, 2**31),
    "training.eval_interval": st.none() | counts,
    "training.recompute": st.sampled_from(["none", "selective", "full"]),
    "parallel.tensor_parallel_size": st.integers(1, 64),
    "parallel.expert_tensor_parallel_size": st.none() | st.integers(1, 64),
    "parallel.sequence_parallel": st.sampled_from([None, True, False]),
    "parallel.distributed_optimizer": st.booleans(),
    "checkpoint.save_interval": st.none() | counts,
    "checkpoint.load": st.none() | st.sampled_from(["runs/x", "/a b/c", "gs://bucket/run=1"]),
    "checkpoint.async_save": st.booleans(),
    "checkpoint.fully_reshardable": st.booleans(),
    "checkpoint.save_optimizer": st.booleans(),
}


def is_possible(values: dict[str, Any]) -> bool:
    """Whether a configuration can have all of these."""
    try:
        apply_overrides(RunConfig(), values)
    except ConfigError:
        return False
    return True


def value_of(config: RunConfig, field: str) -> Any:
    value: Any = config
    for name in field.split("."):
        if isinstance(value, RouterConfig):
            return value.option(name)
        value = None if value is None else getattr(value, name)
    return value


def written(config: RunConfig) -> set[str]:
    """Fields whose value a flag says; the others say theirs by the absence of a flag."""
    return {
        rule.field
        for rule in RULES
        if rule.write(config) is not None
        and not (rule.field.startswith("moe.") and config.moe.num_experts is None)
    }


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries({}, optional=FIELDS).filter(is_possible))
def test_fields_come_back_from_their_flags(values: dict[str, Any]) -> None:
    config = apply_overrides(RunConfig(), values)
    overrides = split_flags(to_flags(config))
    assert written(config) - set(overrides) <= {"model.latent_attention", "model.rope_scaling"}
    # Applied to another configuration they give the fields of this one ...
    read = apply_overrides(RunConfig(), overrides)
    for field in written(config):
        assert value_of(read, field) == value_of(config, field), field
    # ... and applied to this one they change nothing.
    assert apply_overrides(config, overrides) == config


@pytest.mark.parametrize("preset", list_presets())
def test_presets_come_back_from_their_flags(preset: str) -> None:
    config = load_config(preset)
    overrides = split_flags(to_flags(config))
    assert written(config) <= set(overrides)
    for field in written(config):
        assert value_of(apply_overrides(config, overrides), field) == value_of(config, field)


def test_every_rule_names_a_field_and_no_flag_twice() -> None:
    known = {".".join((s, *it.path)) for s, kind in SECTIONS.items() for it in settings_of(kind)}
    routers = {rule.field for rule in RULES if rule.field.startswith("moe.router.")}
    assert {rule.field for rule in RULES} - routers <= known
    flags = [rule.flag for rule in RULES]
    assert len(set(flags)) == len(flags)


def test_fields_without_a_flag_are_the_ones_the_engine_resolves() -> None:
    none = {"telemetry", "data", "recovery", "finetune", "adapter", "evaluation", "preferences"}
    known = {
        ".".join((s, *it.path))
        for s, kind in SECTIONS.items()
        if s not in none
        for it in settings_of(kind)
    }
    assert known - {rule.field for rule in RULES} == {
        "training.precision",
        "model.qk_norm_scope",
        "model.qk_norm_after_rotation",
        "model.latent_attention.norm_epsilon",
        "model.attention_output_bias",
        "model.lm_head_bias",
        "model.embedding_multiplier",
        "model.attention_multiplier",
        "model.residual_multiplier",
        "model.logits_divisor",
        "moe.expert_dropout",
        "model.sliding_window",  # its fields have flags
        "checkpoint.fallback",
        "checkpoint.keep_last",
        "checkpoint.keep_every",
        "checkpoint.keep_best",
        "checkpoint.patience_seconds",
        "moe.expert",  # what is not the model's MLP is told to the layers
        "moe.router",  # what is not top_k's is told to the layers
    }


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        (["--num-layers", "6"], {"model.num_layers": 6}),
        (["--num-layers=6"], {"model.num_layers": 6}),
        (["--lr=1e-3"], {"training.learning_rate": "1e-3"}),
        (["--lr", "1", "--lr", "2"], {"training.learning_rate": "2"}),
        (["--swiglu"], {"model.activation": "swiglu"}),
        (["--squared-relu"], {"model.activation": "squared_relu"}),
        (["--disable-bias-linear"], {"model.add_bias": False}),
        (["--untie-embeddings-and-output-weights"], {"model.tie_embeddings": False}),
        (["--no-save-optim"], {"checkpoint.save_optimizer": False}),
        (["--load=a=b"], {"checkpoint.load": "a=b"}),
        (["--manual-gc"], {"megatron.manual-gc": True}),
        (["--recompute-modules", "moe", "mlp"], {"megatron.recompute-modules": ("moe", "mlp")}),
        (["--exit-interval", "5"], {"megatron.exit-interval": "5"}),
        (["--init-method-xavier-uniform"], {"megatron.init-method-xavier-uniform": True}),
        (["--exit-signal", "-1.5"], {"megatron.exit-signal": "-1.5"}),
        (
            ["--rope-scaling-factor", "4", "--use-rope-scaling"],
            {"model.rope_scaling.kind": "llama3", "model.rope_scaling.factor": "4"},
        ),
        (
            ["--use-rope-scaling"],
            {"model.rope_scaling.kind": "llama3", "model.rope_scaling.factor": 8.0},
        ),
        (["--window-size", "8,0"], {"model.sliding_window.size": 8}),
        (["--window-size", "8,8"], {"megatron.window-size": "8,8"}),
        (["--window-attn-skip-freq", "4"], {"megatron.window-attn-skip-freq": "4"}),
        (["--softmax-type", "off-by-one"], {"megatron.softmax-type": "off-by-one"}),
        (["--moe-router-pre-softmax"], {"moe.router.pre_softmax": True}),
        ([], {}),
    ],
)
def test_words_become_overrides(words: list[str], overrides: dict[str, Any]) -> None:
    assert split_flags(words) == overrides


def test_text_that_is_a_number_reaches_the_field_as_one() -> None:
    config = apply_overrides(RunConfig(), split_flags(["--lr=1e-2", "--moe-z-loss-coeff", "0"]))
    assert config.training.learning_rate == 0.01
    assert config.moe.z_loss_coef == 0.0


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("2", 2),
        ("[1,0,1]", (1, 0, 1)),
        ("1,0", (1, 0)),
        ("([0]*1+[1]*3)*2", (0, 1, 1, 1, 0, 1, 1, 1)),
        ("[x]", "[x]"),
        ("[1,", "[1,"),
        ("[1]*'a'", "[1]*'a'"),
        ("[1]*9999999999", "[1]*9999999999"),
        ("9999999999*([1]*9)", "9999999999*([1]*9)"),
        ("[1]*60000+[1]*60000", "[1]*60000+[1]*60000"),
        ("(" * 5000, "(" * 5000),
        ("[1**9]", "[1**9]"),
        ("__import__('os')", "__import__('os')"),
    ],
)
def test_layer_pattern_is_read_as_megatron_reads_it(text: str, layers: Any) -> None:
    assert split_flags(["--moe-layer-freq", text]) == {"moe.layer_frequency": layers}


def test_layer_pattern_that_is_none_gets_the_message_of_the_field() -> None:
    with pytest.raises(ConfigError, match=r"^moe\.layer_frequency needs a whole number or a list"):
        apply_overrides(RunConfig(), split_flags(["--moe-layer-freq", "every second"]))


@pytest.mark.parametrize(
    ("words", "precision", "format_"),
    [
        (["--bf16"], "bf16", None),
        (["--fp8-format", "e4m3"], "fp8", "e4m3"),
        (["--fp8-format"], "fp8", "hybrid"),
        (["--bf16", "--fp8-format=hybrid"], "fp8", "hybrid"),
        (["--fp8-format=hybrid", "--bf16"], "fp8", "hybrid"),
    ],
)
def test_precision_flags_set_the_precision(
    words: list[str], precision: str, format_: str | None
) -> None:
    overrides = split_flags(words)
    assert overrides["training.precision"] == precision
    assert overrides.get("megatron.fp8-format") == format_
    assert set(overrides) <= {"training.precision", "megatron.fp8-format"}


@pytest.mark.parametrize("flag", [rule.flag for rule in RULES if rule.takes_value])
def test_missing_value_is_named(flag: str) -> None:
    message = rf"^--{flag} needs a value, as in '--{flag} VALUE'; none was given\.$"
    with pytest.raises(ConfigError, match=message):
        split_flags([f"--{flag}", "--bf16"])


def test_surplus_value_is_refused() -> None:
    message = (
        r"^--num-layers takes one value, but is followed by '6 7 8'; leave out '7 8', or set "
        r"model\.num_layers in the configuration\.$"
    )
    with pytest.raises(ConfigError, match=message):
        split_flags(["--num-layers", "6", "7", "8"])


@pytest.mark.parametrize("words", [["--swiglu", "false"], ["--swiglu=false"]])
def test_switch_with_a_value_is_refused(words: list[str]) -> None:
    message = (
        r"^--swiglu takes no value, but is followed by 'false'; leave out 'false', or set "
        r"model\.activation in the configuration\.$"
    )
    with pytest.raises(ConfigError, match=message):
        split_flags(words)


def test_word_before_any_flag_is_refused() -> None:
    message = r"^'6' is not a flag; give flags as in '--num-layers 6', after the configuration\.$"
    with pytest.raises(ConfigError, match=message):
        split_flags(["6", "--bf16"])


def test_megatron_flags_are_written_last_with_their_values() -> None:
    flags = {"manual-gc": True, "fp16": False, "exit-interval": 3, "recompute-modules": ("a", "b")}
    config = apply_overrides(RunConfig(), {f"megatron.{k}": v for k, v in flags.items()})
    words = to_flags(config)
    tail = ["--manual-gc", "--exit-interval", "3", "--recompute-modules", "a", "b"]
    assert words[-len(tail) :] == tail
    assert "--fp16" not in words


def test_dense_model_writes_no_flag_of_the_experts() -> None:
    words = to_flags(apply_overrides(RunConfig(), {"moe.num_experts": None}))
    assert not [
        word for word in words if "moe" in word or ("expert" in word and "paral" not in word)
    ]


def test_experts_of_a_run_are_written() -> None:
    words = to_flags(RunConfig())
    assert words[words.index("--moe-router-topk") + 1] == "2"
    assert words[words.index("--num-experts") + 1] == "8"


def test_data_path_takes_paths_or_weights_and_paths() -> None:
    assert split_flags(["--data-path", "a"]) == {"data.paths": ("a",), "data.weights": None}
    mixed = split_flags(["--data-path", "0.3", "a", "0.7", "b"])
    assert mixed == {"data.paths": ("a", "b"), "data.weights": ("0.3", "0.7")}
