"""Weights travel to Megatron and back bit by bit, and both models answer the same."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.testing.distributed import run_distributed

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

VOCAB = 300  # Megatron pads it to a multiple of 128 x TP
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_experts": 4,
    "num_attention_heads": 4,
    "expert_hidden_size": 24,
    "ffn_hidden_size": 40,
    "init_std": 0.2,
}
DENSE = {"num_experts": None}
LATENT = {"kv_lora_rank": 16, "qk_head_dim": 6, "qk_pos_emb_head_dim": 4, "v_head_dim": 10}
ARCHITECTURES = [
    *("SwitchTransformer", "MixtralModel", "GLaMMoE", "OLMoE", "Qwen3MoE"),
    *("DeepSeekV3", "KimiK2", "GPTOSS"),
]
"""Their tiny sizes."""
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gqa": {"num_query_groups": 2},
    "one_group": {"num_query_groups": 1},
    "wide_heads": {"head_dim": 16},
    "qk_norm": {"qk_norm": True},
    "qk_norm_all_heads": {"qk_norm": True, "qk_norm_scope": "all_heads", "num_query_groups": 2},
    "shared_expert": {"shared_expert_hidden_size": 24},
    "one_moe_layer": {"layer_frequency": [0, 1]},
    "switch": {"router_type": "switch"},
    "sigmoid": {"router_type": "sigmoid"},
    "gelu": {"activation": "gelu"},
    "dense": DENSE,
    "layer_norm_and_bias": {**DENSE, "norm": "LayerNorm", "add_bias": True, "activation": "gelu"},
    "swiglu_bias": {**DENSE, "add_bias": True},
    "untied": {"tie_embeddings": False},
    "learned_positions": {"position_embedding": "learned_absolute", "max_position_embeddings": 32},
    "whole_vocabulary": {"vocab_size": 256},
    "multipliers": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.1,
        "residual_multiplier": 0.4,
        "logits_divisor": 1.5,
    },
    "biases": {"attention_output_bias": True, "lm_head_bias": True, "tie_embeddings": False},
    "tied_head_bias": {"lm_head_bias": True},
    "sparse_mixer": {"router_type": "sparse_mixer"},
    "expert_biases": {"add_bias": True},
    "expert_bias": {"router_type": "sigmoid", "expert_bias": True},
    "qkv_bias": {"qkv_bias": True, "num_query_groups": 2},
    "half_rotated": {"rotary_fraction": 0.5},
    "gated_shared_expert": {"shared_expert_hidden_size": 24, "shared_expert_gate": True},
    "low_rank_experts": {"expert": {"name": "low_rank", "rank": 4}},
    "gelu_experts": {"expert": "gelu"},
    "latent": {
        "latent_attention": LATENT | {"q_lora_rank": 12},
        "qk_norm": True,
        "expert_bias": True,
    }
    | {"router_type": "sigmoid", "layer_frequency": [0, 1], "tie_embeddings": False},
    "latent_full_rank": {"latent_attention": LATENT | {"norm_epsilon": 1e-2}, "qk_norm": True},
    "latent_without_norms": {"latent_attention": LATENT},
    "sinks": {"attention_sinks": True, "num_query_groups": 2},
    "windows": {"sliding_window": {"size": 3, "layers": [1, 0]}},
    "clamped": {"activation": "quick_geglu", "activation_clamp": 0.5, "glu_offset": 1.0},
    **{name: {"architecture": name} for name in ARCHITECTURES},
}
TP2 = {"parallel.tensor_parallel_size": 2}
PP2 = {"parallel.pipeline_parallel_size": 2}
EP2 = {"parallel.expert_parallel_size": 2}
ETP1 = {"parallel.expert_tensor_parallel_size": 1}
SPREAD = [
    *("plain", "gqa", "qk_norm", "qk_norm_all_heads", "shared_expert"),
    *("one_moe_layer", "gelu", "untied", "sparse_mixer"),
    *("expert_bias", "qkv_bias", "gated_shared_expert", "latent", "sinks", "windows", "clamped"),
]
DENSE_ONES = ["dense", "layer_norm_and_bias", "swiglu_bias"]
LAYOUTS: dict[str, tuple[int, dict[str, int], list[str]]] = {
    "single": (1, {}, list(MODELS)),
    "tp2": (
        2,
        TP2,
        [
            *(*SPREAD, *DENSE_ONES, "learned_positions", "whole_vocabulary"),
            *("multipliers", "biases", "tied_head_bias"),
        ],
    ),
    "ep2": (2, EP2, [*SPREAD, "expert_biases", "low_rank_experts", "gelu_experts", *ARCHITECTURES]),
    "pp2": (
        2,
        PP2,
        [
            *("plain", "one_moe_layer", "untied", "layer_norm_and_bias"),
            *("multipliers", "biases", "tied_head_bias"),
        ],
    ),
    "tp2_etp1_ep2": (2, {**TP2, **ETP1, **EP2}, ["plain", "shared_expert", "gelu_experts"]),
    "tp2_ep2": (4, {**TP2, **EP2}, ["gqa", "shared_expert", "untied"]),
    "tp2_pp2": (4, {**TP2, **PP2}, ["plain", "untied"]),
}


# --- the program of a rank -----------------------------------------------------------------------


def compare(place: Path, cases: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What every case answered, by its name."""
    from moe_megatron.mcore import world

    answers = {}
    for case in cases:
        layout, _, name = case.partition("-")
        answers[case] = _compare(place / case, MODELS[name], LAYOUTS[layout][1])
    world.leave()
    return answers


def _compare(run_dir: Path, options: dict[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
    """Load a model into Megatron; say what came back, and how far the logits are apart."""
    import torch

    from moe_megatron import architectures
    from moe_megatron.config import RunConfig, apply_overrides
    from moe_megatron.mcore import world
    from moe_megatron.mcore.loop import engine
    from moe_megatron.mcore.loop.callbacks import Callback
    from moe_megatron.mcore.state.weights import collect_weights, load_weights
    from moe_megatron.model.moe_model import MoEModel
    from moe_megatron.run.machine import choose_machine
    from tests.functional.parallel_logits import parallel_logits

    torch.manual_seed(1)
    if name := options.get("architecture"):
        plain = getattr(architectures, name).tiny(vocab_size=VOCAB, init_std=0.2)
    else:
        plain = MoEModel(**{**SHAPE, "vocab_size": VOCAB, **options})
    for name, value in plain.named_parameters():
        if "norm" in name or name.endswith(("bias", "sinks")):
            value.data.add_(0.1 * torch.randn_like(value))
    for value in plain.buffers():
        value.add_(torch.randn_like(value))
    weights = {name: value.detach().clone() for name, value in plain.state_dict().items()}
    tokens = torch.randint(0, plain.vocab_size, (2, 16))
    answer: dict[str, Any] = {}

    class Compare(Callback):
        def on_train_start(self, model: list[Any], start_step: int) -> None:
            back = collect_weights(model, plain.architecture)
            answer["changed"] = [n for n in weights if not torch.equal(back[n], weights[n])]
            with torch.no_grad():
                logits = parallel_logits(model[0], tokens)
                expected = plain.eval()(tokens).logits
            answer["spread"] = float(expected.std())
            if logits is not None:
                logits = logits[..., : plain.vocab_size]
                answer["difference"] = float((logits - expected).abs().max())
            answers: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(answers, answer)
            for other in answers:
                answer.update(other)

    def load(chunks: list[Any]) -> list[Any]:
        load_weights(chunks, weights, plain.architecture)
        return chunks

    config = apply_overrides(
        RunConfig(model=plain.model_config, moe=plain.moe_config),
        {
            **sizes,
            "data.sequence_length": 16,
            "training.train_steps": 1,
            "training.micro_batch_size": 1,
            "training.global_batch_size": 2,
            "training.precision": "fp32",
            "training.warmup_steps": 0,
            "training.eval_interval": None,
            "checkpoint.save_interval": None,
        },
    )
    job = engine.TrainingJob(
        config=config,
        data_paths=(),
        data_cache=run_dir.parent / "mock_data",
        vocab_size=plain.vocab_size,
        end_of_document=0,
        run_dir=run_dir,
        callbacks=(Compare(),),
        model_hooks=(load,),
        megatron_log=run_dir / f"rank{world.rank()}.log",
    )
    engine.run(job, choose_machine(config).settings)
    return answer


# --- the tests -----------------------------------------------------------------------------------


DECISIVE = {
    "single": [
        *("wide_heads", "dense", "multipliers", "half_rotated", "latent_full_rank"),
        *("DeepSeekV3", "GPTOSS"),
    ],
    "tp2": [
        *("gqa", "qk_norm_all_heads", "learned_positions", "swiglu_bias", "biases"),
        *("whole_vocabulary", "gated_shared_expert"),
    ],
    "ep2": ["expert_biases", "expert_bias", "gelu_experts"],
    "pp2": ["one_moe_layer", "untied", "tied_head_bias", "layer_norm_and_bias"],
    "tp2_etp1_ep2": ["shared_expert"],
    "tp2_ep2": ["shared_expert"],
    "tp2_pp2": [],
}
"""What a layout splits in a way of its own; of a single process, what no layout has here."""
CASES = [
    pytest.param(
        f"{layout}-{model}",
        marks=() if model in DECISIVE.get(layout, models) else pytest.mark.deep,
    )
    for layout, (_, _, models) in LAYOUTS.items()
    for model in models
]


@pytest.fixture(scope="module")
def answers(
    tmp_path_factory: pytest.TempPathFactory, chosen: Callable[[str], list[str]]
) -> dict[str, dict[str, Any]]:
    """Every comparison, by layout and model."""
    place = tmp_path_factory.mktemp("weights")
    found: dict[str, dict[str, Any]] = {}
    for world_size in sorted({layout[0] for layout in LAYOUTS.values()}):
        cases = [c for c in chosen("case") if LAYOUTS[c.partition("-")[0]][0] == world_size]
        found |= run_distributed(compare, place, cases, world_size=world_size)[0] if cases else {}
    return found


@pytest.mark.parametrize("case", CASES)
def test_weights_return_bit_by_bit_and_logits_agree(
    case: str, answers: dict[str, dict[str, Any]]
) -> None:
    answer = answers[case]
    assert answer["changed"] == []
    assert answer["spread"] > 0.1  # or agreement would mean little
    assert answer["difference"] < 1e-5 * max(1.0, answer["spread"])
