"""A Hugging Face model, loaded, trained on in Megatron, and saved as one again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from moe_megatron.testing.distributed import NO_LAUNCHER, run_distributed
from tests.functional.scripts import run_as_main

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

SCRIPT = """
import json, sys
from pathlib import Path
from moe_megatron import MoETrainer, models

folder, tokenizer, corpus, family = sys.argv[1:]
model = getattr(models, family).from_pretrained(folder)
trainer = MoETrainer(model, tokenizer=tokenizer)
result = trainer.train(corpus, max_steps=2, batch_size=4, sequence_length=32, learning_rate=1e-2)
trainer.model.save_pretrained("trained", format="hugging_face")
Path("losses.json").write_text(json.dumps(result.losses))
"""


SHAPE = {
    "vocab_size": 384,  # Megatron pads the vocabulary to a multiple of 128.
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


@pytest.mark.parametrize(
    ("family", "model_type", "sizes"),
    [
        ("Mixtral", "mixtral", {"num_local_experts": 4}),
        # Biases, a gated shared expert, and a first layer without experts.
        (
            "Qwen2MoE",
            "qwen2_moe",
            {**EXPERTS, "shared_expert_intermediate_size": 24, "mlp_only_layers": [0]},
        ),
    ],
)
def test_published_model_trains_on_and_returns(
    family: str,
    model_type: str,
    sizes: dict[str, Any],
    tmp_path: Path,
    tokenizer: Path,
    corpus: Path,
) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SHAPE, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "model")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    given = {"directory": tmp_path, "environment": NO_LAUNCHER, "world_size": 1}
    run_distributed(run_as_main, script, ("model", tokenizer, corpus, family), **given)
    losses = json.loads((tmp_path / "losses.json").read_text())
    assert losses[1] < losses[0]
    assert losses[0] == pytest.approx(torch.tensor(384.0).log().item(), abs=0.3)
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "trained")
    assert type(trained) is type(model)
    changed = [
        name
        for name, value in trained.state_dict().items()
        if not torch.equal(value, model.state_dict()[name])
    ]
    assert set(changed) == set(model.state_dict())
