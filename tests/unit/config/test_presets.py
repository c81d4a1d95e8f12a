"""The packaged presets: they load, fit the processes they name, and have the published shapes."""

import pytest

from moe_megatron.config import RunConfig, list_presets, load_config
from moe_megatron.errors import TopologyError


def count_weights(config: RunConfig, experts: int) -> int:
    """Weights of the matrices when `experts` of each layer are counted, embeddings excluded."""
    model = config.model
    queries = model.num_attention_heads * model.attention_head_dim
    keys = model.key_value_heads * model.attention_head_dim
    attention = model.hidden_size * (2 * queries + 2 * keys)
    router = model.hidden_size * (config.moe.num_experts or 0)
    expert = 3 * model.hidden_size * config.expert_hidden_size
    return model.num_layers * (attention + router + experts * expert)


def test_list_presets_is_complete() -> None:
    assert list_presets() == (
        "demo_dense",
        "demo_moe",
        "mixtral_8x7b",
        "olmoe_1b_7b",
        "qwen3_30b_a3b",
        "test_tiny",
    )


@pytest.mark.parametrize(
    ("preset", "world_size"),
    [
        ("demo_dense", 1),
        ("demo_dense", 2),
        ("demo_moe", 2),
        ("test_tiny", 1),
        ("test_tiny", 2),
        ("test_tiny", 4),
        ("olmoe_1b_7b", 8),
        ("olmoe_1b_7b", 64),
        ("mixtral_8x7b", 16),
        ("mixtral_8x7b", 64),
        ("qwen3_30b_a3b", 16),
        ("qwen3_30b_a3b", 64),
    ],
)
def test_preset_fits_its_processes(preset: str, world_size: int) -> None:
    config = load_config(preset)
    config.validate(world_size)
    assert config.preset == preset
    assert config.run_dir == f"runs/{preset}"


@pytest.mark.parametrize("preset", ["olmoe_1b_7b", "mixtral_8x7b", "qwen3_30b_a3b"])
def test_preset_large_model_on_one_process_says_what_to_start(preset: str) -> None:
    with pytest.raises(TopologyError, match=r"start (8|16) processes"):
        load_config(preset).validate(1)


def test_demo_presets_cost_the_same_per_token() -> None:
    moe, dense = load_config("demo_moe"), load_config("demo_dense")
    assert moe.moe.top_k * moe.expert_hidden_size == dense.model.dense_ffn_size
    assert dense.moe_layers == ()
    assert dense.training == moe.training
    assert dense.data == moe.data


@pytest.mark.parametrize(
    ("preset", "vocab_size", "total", "active"),
    [
        # Vocabulary of the published weights; totals and active weights in billions, as published.
        ("mixtral_8x7b", 32000, 46.7, 12.9),
        ("olmoe_1b_7b", 50304, 6.92, 1.28),
        ("qwen3_30b_a3b", 151936, 30.5, 3.3),
    ],
)
def test_preset_has_as_many_weights_as_published(
    preset: str, vocab_size: int, total: float, active: float
) -> None:
    config = load_config(preset)
    embeddings = 2 * vocab_size * config.model.hidden_size
    counted = count_weights(config, config.moe.num_experts or 0) + embeddings
    used = count_weights(config, config.moe.top_k) + embeddings
    assert counted / 1e9 == pytest.approx(total, rel=0.005)
    assert used / 1e9 == pytest.approx(active, rel=0.02)


def test_qwen3_vocabulary_is_padded_to_the_published_rows() -> None:
    step = load_config("qwen3_30b_a3b").megatron["make-vocab-size-divisible-by"]
    tokenizer_size = 151669
    assert isinstance(step, int)
    assert -(-tokenizer_size // step) * step == 151936
