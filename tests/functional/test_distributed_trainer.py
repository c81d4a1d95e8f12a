"""`DistributedMoETrainer` starts its processes, or takes those of a launcher; both train alike.

The README's example, which starts two, runs in `make test` (`test_docs.py`).
"""

import json
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.testing.distributed import NO_LAUNCHER, RankError, run_distributed, start_ranks
from tests.functional.scripts import run_as_main

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

SCRIPT = """
import copy, json, sys
from pathlib import Path
import torch
from moe_megatron import MoEModel, MoETrainer
from moe_megatron.distributed import DistributedMoETrainer

TOKENIZER, CORPUS, OUT = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
texts = [json.loads(line)["text"] for line in CORPUS.read_text().splitlines()]
torch.manual_seed(0)
shape = dict(hidden_size=32, num_experts=4, num_layers=2, num_attention_heads=4, vocab_size=384)
model = MoEModel(**shape, expert_hidden_size=32)
alone = copy.deepcopy(model)

def trained(trainer):
    result = trainer.train(texts, texts[:20], max_steps=4, batch_size=4, sequence_length=32)
    return {
        "losses": result.losses,
        "validation": result.validation_loss,
        "experts": None if result.routing is None else result.routing.tokens_per_expert.tolist(),
        "tokens": result.tokens,
        "history": trainer.history.losses,
        "run": str(result.run_dir),
        "report": Path(trainer.visualize_routing(OUT + ".html")).name,
        "text": model.generate_text("Document 1:", max_new_tokens=3)[:11],
        "weight": float(trainer.model.embed_tokens.weight.double().norm()),
    }

# In a notebook the cell is all that there is: no main guard.
options = dict(tokenizer=TOKENIZER, run_dir="runs/spread")
spread = DistributedMoETrainer(model, world_size=2, expert_parallel_size=2, **options)
answers = {"spread": trained(spread), "world_size": spread.world_size}
"""
ALONE = """
answers["alone"] = trained(MoETrainer(alone, tokenizer=TOKENIZER, run_dir="runs/alone"))
answers["left"] = [str(path) for path in Path("runs").glob(".handover*")]
"""
END = (
    "import os\nif os.environ.get('RANK', '0') == '0': Path(OUT).write_text(json.dumps(answers))\n"
)


def run(place: Path, name: str, text: str, *words: object, **surroundings: Any) -> dict[str, Any]:
    script, out = place / f"{name}.py", place / f"{name}.json"
    script.write_text(text + END)
    words = (script, (*words, out))
    with start_ranks(run_as_main, *words, directory=place, **surroundings) as ranks:
        ends = ranks.wait()
    if any(end.exit_code for end in ends):
        raise RankError(ends)
    return {**json.loads(out.read_text()), "output": ends[0].output}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def started(place: Path, cache: Path, tokenizer: Path, corpus: Path) -> dict[str, Any]:
    """One process that starts two."""
    environment = {**NO_LAUNCHER, "MOE_MEGATRON_CACHE": str(cache)}
    return run(place, "started", SCRIPT + ALONE, tokenizer, corpus, environment=environment)


@pytest.fixture(scope="module")
def given(place: Path, cache: Path, tokenizer: Path, corpus: Path) -> dict[str, Any]:
    """Two processes, as torchrun starts them."""
    environment = {"MOE_MEGATRON_CACHE": str(cache)}
    return run(place, "given", SCRIPT, tokenizer, corpus, environment=environment, world_size=2)


@pytest.mark.deep
def test_started_processes_train_as_one_does(started: dict[str, Any]) -> None:
    spread, alone = started["spread"], started["alone"]
    assert len(spread["losses"]) == 4
    assert spread["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert spread["validation"] == pytest.approx(alone["validation"], rel=1e-4)
    assert spread["weight"] == pytest.approx(alone["weight"], rel=1e-4)
    assert spread["tokens"] == alone["tokens"] == 4 * 4 * 32
    assert [sum(layer) for layer in spread["experts"]] == [2 * 4 * 4 * 32] * 2


@pytest.mark.deep
def test_result_of_started_processes_is_whole(started: dict[str, Any], place: Path) -> None:
    spread = started["spread"]
    assert spread["history"] == spread["losses"]
    assert (place / spread["run"] / "metrics.jsonl").exists()
    assert spread["report"] == "started.json.html"
    assert spread["text"] == "Document 1:"
    assert started["world_size"] == 2
    assert started["left"] == []


@pytest.mark.deep
def test_progress_of_started_processes_reaches_the_caller(started: dict[str, Any]) -> None:
    assert "step 4/4 | loss" in started["output"]


@pytest.mark.deep
def test_processes_of_a_launcher_are_taken(started: dict[str, Any], given: dict[str, Any]) -> None:
    assert given["world_size"] == 2
    assert given["spread"]["losses"] == pytest.approx(started["spread"]["losses"], rel=1e-6)
    assert given["spread"]["experts"] == started["spread"]["experts"]


def test_another_number_of_processes_than_the_launchers_is_refused() -> None:
    assert all("world_size is 4, but" in text for text in run_distributed(refusal, world_size=2))


def refusal() -> str:
    """What a rank of two is told that asks for four."""
    from moe_megatron import MoEModel
    from moe_megatron.distributed import DistributedMoETrainer
    from moe_megatron.errors import TopologyError

    try:
        DistributedMoETrainer(MoEModel(hidden_size=16, num_layers=1), world_size=4)
    except TopologyError as error:
        return str(error)
    return ""


def test_every_rank_of_a_diverged_training_raises(tmp_path: Path, tokenizer: Path) -> None:
    told = run_distributed(diverging, str(tmp_path / "run"), str(tokenizer), world_size=2)
    assert told[0] == told[1]
    assert "the loss or its gradients stopped being finite at step 2 and did not recover" in told[0]
    assert told[0].endswith("exit code 2, weights as before: True")


def diverging(run_dir: str, tokenizer: str) -> str:
    """What a rank of two is told whose learning rate is absurd."""
    import torch

    from moe_megatron import MoEModel
    from moe_megatron.distributed import DistributedMoETrainer
    from moe_megatron.errors import RecoveryError

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_experts": 4, "num_layers": 1, "num_attention_heads": 4}
    model = MoEModel(**shape, expert_hidden_size=32, vocab_size=384)
    before = model.embed_tokens.weight.clone()
    trainer = DistributedMoETrainer(model, tokenizer=tokenizer, run_dir=run_dir)
    texts = ["some text that is long enough for a sequence " * 20] * 8
    options = {"max_steps": 6, "batch_size": 2, "sequence_length": 16, "warmup_steps": 0}
    try:
        trainer.train(texts, learning_rate=1e25, **options)
    except RecoveryError as error:
        same = torch.equal(before, model.embed_tokens.weight)
        return f"{error} exit code {error.exit_code}, weights as before: {same}"
    return "nothing"
