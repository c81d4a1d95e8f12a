"""`in_processes`: `FineTuner` and `MoELoRA` train with processes of their own as in one process."""

import json
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.testing.distributed import NO_LAUNCHER, start_ranks
from tests.functional.scripts import run_as_main

pytestmark = [pytest.mark.distributed, pytest.mark.deep, pytest.mark.timeout(600)]

SCRIPT = """
import copy, json, sys
from pathlib import Path
import torch
from moe_megatron import FineTuner, MoEModel
from moe_megatron.distributed import in_processes
from moe_megatron.peft import MoELoRA

TOKENIZER, CORPUS, OUT = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
texts = [json.loads(line)["text"] for line in CORPUS.read_text().splitlines()]
torch.manual_seed(0)
shape = dict(hidden_size=32, num_experts=4, num_layers=2, num_attention_heads=4, vocab_size=384)
model = MoEModel(**shape, expert_hidden_size=32)
how = dict(max_steps=3, batch_size=4, sequence_length=32, learning_rate=1e-2)
# Auxiliary losses are those of a rank's tokens.
exact = {"training.precision": "fp32", "moe.aux_loss_coef": 0.0, "telemetry.console": False}
layout = dict(world_size=2, expert_parallel_size=2)
answers = {"losses": {}, "weights": {}, "frozen": []}

def differ(ours, theirs):
    assert ours.keys() == theirs.keys()
    return max(float((theirs[name] - it).abs().max()) for name, it in ours.items())

def tuner(name):
    it = FineTuner(
        copy.deepcopy(model), train=["experts", "router"], tokenizer=TOKENIZER,
        run_dir=f"runs/{name}", overrides=exact,
    )
    return it

def lora(name):
    return MoELoRA(model, 4, 8, tokenizer=TOKENIZER, run_dir=f"runs/{name}", overrides=exact)

started = in_processes(tuner("both"), **layout)
alone = tuner("one")
answers["losses"]["tuner"] = [it.train(texts, **how).losses for it in (started, alone)]
answers["weights"]["tuner"] = differ(started.model.state_dict(), alone.model.state_dict())
before = model.state_dict()
answers["frozen"] = [
    torch.equal(it.model.state_dict()[name], before[name])
    for it in (started, alone) for name in before if ".attention." in name or "embed" in name
]

base = {name: it.clone() for name, it in before.items()}
started, alone = in_processes(lora("adapted"), **layout), lora("adapted_alone")
for again in ("lora", "lora again"):  # the second time, the adapter is trained on
    answers["losses"][again] = [it.train(texts, **how).losses for it in (started, alone)]
    ours, theirs = (
        {f"{place}.{part}": getattr(it, part) for place, it in one.adapter.items() for part in "ab"}
        for one in (started, alone)
    )
    answers["weights"][again] = differ(ours, theirs)
answers["base"] = all(torch.equal(it, model.state_dict()[name]) for name, it in base.items())
answers["size"] = started.world_size
answers["left"] = [str(path) for path in Path("runs").glob(".handover*")]
OUT.write_text(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(
    tmp_path_factory: pytest.TempPathFactory, cache: Path, tokenizer: Path, corpus: Path
) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("in_processes")
    (place / "script.py").write_text(SCRIPT)
    words = (place / "script.py", (tokenizer, corpus, place / "answers.json"))
    environment = {**NO_LAUNCHER, "MOE_MEGATRON_CACHE": str(cache)}
    one = {"directory": place, "environment": environment, "world_size": 1}
    with start_ranks(run_as_main, *words, **one) as ranks:
        (end,) = ranks.wait()
    assert end.exit_code == 0, end.output
    found: dict[str, Any] = json.loads((place / "answers.json").read_text())
    return found


@pytest.mark.parametrize("kind", ["tuner", "lora", "lora again"])
def test_started_processes_tune_as_one_does(kind: str, answers: dict[str, Any]) -> None:
    started, alone = answers["losses"][kind]
    assert len(alone) == 3
    assert alone[-1] != pytest.approx(alone[0], abs=1e-3)
    assert started == pytest.approx(alone, abs=1e-5)
    assert answers["weights"][kind] < 1e-4


def test_what_is_not_trained_stays_and_no_file_is_left(answers: dict[str, Any]) -> None:
    assert all(answers["frozen"])
    assert answers["base"]
    assert answers["size"] == 2
    assert answers["left"] == []
    first, second = (answers["losses"][kind][1] for kind in ("lora", "lora again"))
    assert second[0] < first[0] - 0.01
