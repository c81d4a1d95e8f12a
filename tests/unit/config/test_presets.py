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
        "deepseek_v3",
        "deepseek_v3_tiny",
        "demo_dense",
        "demo_moe",
        "glam_64b_64e",
        "glam_tiny",
        "gpt_oss_120b",
        "gpt_oss_20b",
        "gpt_oss_tiny",
        "kimi_k2",
        "kimi_k2_tiny",
        "mixtral_8x22b",
        "mixtral_8x7b",
        "mixtral_tiny",
        "olmoe_1b_7b",
        "olmoe_tiny",
        "qwen3_235b_a22b",
        "qwen3_30b_a3b",
        "qwen3_moe_tiny",
        "switch_base_128",
        "switch_base_16",
        "switch_base_32",
        "switch_base_64",
        "switch_base_8",
        "switch_tiny",
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
        ("switch_base_128", 8),
        ("switch_base_128", 64),
        ("deepseek_v3", 1024),
        ("deepseek_v3", 2048),
        ("mixtral_8x22b", 64),
        ("qwen3_235b_a22b", 128),
        ("glam_64b_64e", 512),
        ("gpt_oss_20b", 8),
        ("gpt_oss_120b", 64),
        ("kimi_k2", 1024),
        *((f"switch_base_{experts}", 8) for experts in (8, 16, 32, 64)),
        *((preset, 2) for preset in list_presets() if preset.endswith("_tiny")),
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


def test_deepseek_v3_has_as_many_weights_as_published() -> None:
    config = load_config("deepseek_v3")
    model, moe, latent = config.model, config.moe, config.model.latent_attention
    assert latent is not None
    assert latent.q_lora_rank is not None
    heads, width = model.num_attention_heads, model.hidden_size
    key = latent.qk_head_dim + latent.qk_pos_emb_head_dim
    attention = (
        width * latent.q_lora_rank
        + latent.q_lora_rank * heads * key
        + width * (latent.kv_lora_rank + latent.qk_pos_emb_head_dim)
        + latent.kv_lora_rank * heads * (latent.qk_head_dim + latent.v_head_dim)
        + heads * latent.v_head_dim * width
    )
    expert = 3 * width * config.expert_hidden_size
    moe_layers = len(config.moe_layers)
    dense = (model.num_layers - moe_layers) * 3 * width * model.dense_ffn_size
    shared = moe_layers * 3 * width * (moe.shared_expert_hidden_size or 0)
    router = moe_layers * width * (moe.num_experts or 0)
    common = model.num_layers * attention + dense + shared + router + 2 * 129280 * width
    assert (common + moe_layers * (moe.num_experts or 0) * expert) / 1e9 == pytest.approx(
        671, rel=0.005
    )
    assert (common + moe_layers * moe.top_k * expert) / 1e9 == pytest.approx(37, rel=0.02)


def test_deepseek_v3_cuts_61_layers_into_32_virtual_stages() -> None:
    stages = str(load_config("deepseek_v3").megatron["pipeline-model-parallel-layout"])
    first, middle, last = stages.split("|(tt|)*29")[0], "tt" * 29, stages.split("*29")[1]
    assert (first, last) == ("Et*3", "m|L")
    assert 3 + len(middle) == load_config("deepseek_v3").model.num_layers


def test_switch_base_128_has_the_experts_of_the_paper() -> None:
    config = load_config("switch_base_128")
    expert = 2 * config.model.hidden_size * config.expert_hidden_size  # two matrices: no gate
    assert len(config.moe_layers) * 128 * expert / 1e9 == pytest.approx(3.62, rel=0.01)
