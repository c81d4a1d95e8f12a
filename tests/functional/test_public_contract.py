"""The snippets with which the project was promised, as people write them.

Only sizes are small. Each is a program of its own to its reader; one process runs them all, one
after the other.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.testing.distributed import NO_LAUNCHER, RankError, start_ranks
from tests.functional.scripts import run_as_main

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

SETTING = """
import json, sys, traceback
from pathlib import Path

texts = [json.loads(line)["text"] for line in Path(sys.argv[1]).read_text().splitlines()]
samples = [{"text": text, "domain": "even" if i % 2 else "odd"} for i, text in enumerate(texts)]
"""

SNIPPETS = {
    "model": """
import torch
from moe_megatron import MoEModel

model = MoEModel(
    hidden_size=32, num_experts=4, experts_per_token=2, num_layers=2, router_type="top_k"
)
input_ids = torch.randint(0, 100, (2, 16))
attention_mask = torch.ones_like(input_ids)
output = model(input_ids, attention_mask=attention_mask)
assert output.logits.shape == (2, 16, model.vocab_size)
assert output.aux_loss.dim() == output.z_loss.dim() == 0
assert len(output.routing) == 2
weights = model.get_expert_weights()
assert list(weights) == [1, 2] and len(weights[1]) == 4
model.set_expert_parallel_group(None)
assert (model.hidden_size, model.num_layers, model.num_experts) == (32, 2, 4)
assert model.generate(input_ids, 3).shape == (2, 19)
model.save_pretrained("first")
again = MoEModel.from_pretrained("first")
assert torch.equal(again(input_ids).logits, model.eval()(input_ids).logits)
""",
    "trainer": """
from moe_megatron import MoEModel, MoETrainer

model = MoEModel(hidden_size=32, num_experts=4, experts_per_token=2, num_layers=2)
trainer = MoETrainer(model, load_balancing="auxiliary_loss", router_z_loss_coef=0.01)
result = trainer.train(
    train_dataset=texts, eval_dataset=texts[:40], batch_size=4, learning_rate=1e-3, num_epochs=1,
    warmup_steps=2, gradient_accumulation_steps=2, weight_decay=0.1, eval_interval=2,
    expert_dropout=0.1, load_balancing_loss_coef=0.02, max_steps=3, sequence_length=32,
)
assert len(result.losses) == 3 and result.validation_loss > 0
assert trainer.evaluate(texts[:40]).perplexity > 1
trainer.save_model("second")
assert len(trainer.history.steps) == 3
trainer.visualize_routing(save_to="routing.html")
assert Path("routing.html").stat().st_size > 1000
assert MoEModel.from_pretrained("second").generate_text("Document 1:").startswith("Document 1:")
""",
    "adapters": """
from moe_megatron import MoEModel
from moe_megatron.peft import MoELoRA

model = MoEModel.from_pretrained("first")
before = {name: value.clone() for name, value in model.state_dict().items()}
lora = MoELoRA(
    base_model=model, r=4, lora_alpha=16, target_modules=["expert_fc1", "expert_fc2"],
    expert_wise_adaptation=True,
)
base = lora.evaluate(texts[:40], sequence_length=32)
result = lora.train(
    texts, learning_rate=1e-2, num_epochs=1, max_steps=3, batch_size=4, sequence_length=32
)
assert len(result.losses) == 3
assert lora.evaluate(texts[:40], sequence_length=32).loss < base.loss
assert all((value == model.state_dict()[name]).all() for name, value in before.items())
assert len(lora.adapter) == 2 * 4 * 2  # two layers, four experts, two matrices
""",
    "monitor": """
import torch
from moe_megatron import MoEModel
from moe_megatron.analytics import RouterMonitor

model = MoEModel.from_pretrained("first")
monitor = RouterMonitor(model)
with monitor.track():
    model(torch.randint(0, 100, (2, 16)))
stats = monitor.get_stats()
assert stats.load_variance >= 0 and stats.drop_rate == 0 and stats.entropy > 0
""",
    "analyzer": """
from moe_megatron import MoEModel
from moe_megatron.analytics import RouterAnalyzer

model = MoEModel.from_pretrained("second")
analyzer = RouterAnalyzer(model)
analysis = analyzer.analyze_batch(texts[:2], return_attention_maps=True)
assert analysis.indices.shape[0] == 2 and len(analysis.attention_maps) == 2
specialization = analyzer.compute_expert_specialization(samples, num_samples=40)
assert specialization.domains == ("even", "odd")
analyzer.plot_expert_token_affinity(tokens="The quick brown fox", save_to="affinity.png")
assert Path("affinity.png").read_bytes()[:4] == b"\\x89PNG"
""",
    "architectures": """
import torch
from torch import nn
from moe_megatron import MoETrainer
from moe_megatron.architectures import (
    CustomMoE, DeepSeekV3, GLaMMoE, MixtralModel, SwitchTransformer,
)

class MyExpert(nn.Module):
    def __init__(self, hidden_size, intermediate_size):
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size)
        self.down = nn.Linear(intermediate_size, hidden_size)

    def forward(self, x):
        return self.down(torch.sin(self.up(x)))

small = {"hidden_size": 32, "num_layers": 2}
switch = SwitchTransformer(num_experts=4, expert_capacity_factor=1.25, jitter_noise=0.01, **small)
mixtral = MixtralModel(num_experts=4, top_k=2, normalize_expert_weights=True, **small)
glam, deepseek = GLaMMoE(num_experts=4, **small), DeepSeekV3.tiny(vocab_size=8192)
custom = CustomMoE(router="top_p", expert_class=MyExpert, num_experts=4, **small)
for model in (switch, mixtral, glam, deepseek, custom):
    assert model(torch.randint(0, 100, (2, 16))).logits.shape == (2, 16, model.vocab_size)
assert switch.experts_per_token == 1 and mixtral.experts_per_token == 2
assert glam.architecture.moe_layers == (2,)
result = MoETrainer(deepseek).train(texts, max_steps=2, batch_size=2, sequence_length=32)
assert result.steps == 2 and result.routing is not None
assert MoETrainer(custom).train(texts, max_steps=1, batch_size=2, sequence_length=32).steps == 1
""",
    "published": """
from moe_megatron import MoEModel
from moe_megatron.models import Mixtral

model = MoEModel(
    hidden_size=32, num_experts=4, num_layers=1, num_attention_heads=4, expert_hidden_size=32,
    tie_embeddings=False,
)
model.save_pretrained("mixtral", format="hugging_face")
assert Mixtral.from_pretrained("mixtral").num_experts == 4
""",
    "distributed": """
from moe_megatron import MoEModel
from moe_megatron.distributed import DistributedMoETrainer

trainer = DistributedMoETrainer(
    MoEModel(hidden_size=32, num_experts=4, num_layers=2), world_size=1, expert_parallel_size=1,
    model_parallel_size=1, pipeline_stages=1,
)
assert trainer.train(texts, max_steps=1, batch_size=2, sequence_length=32).steps == 1
""",
}

END = """
answers = {}
for name, snippet in json.loads(sys.argv[2]).items():
    try:
        exec(compile(snippet, name, "exec"), {"texts": texts, "samples": samples, "Path": Path})
        answers[name] = ""
    except Exception:
        answers[name] = traceback.format_exc()
Path("answers.json").write_text(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, cache: Path, corpus: Path) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("contract")
    script = place / "script.py"
    script.write_text(SETTING + END)
    given = {
        "directory": place,
        "environment": {**NO_LAUNCHER, "MOE_MEGATRON_CACHE": str(cache)},
        "world_size": 1,
    }
    with start_ranks(run_as_main, script, (corpus, json.dumps(SNIPPETS)), **given) as ranks:
        (end,) = ranks.wait()
    if end.exit_code:
        raise RankError([end])
    return dict(json.loads((place / "answers.json").read_text()))


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet_runs(snippet: str, answers: dict[str, str]) -> None:
    assert answers[snippet] == ""
