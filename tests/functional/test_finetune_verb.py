"""`moe-megatron finetune`: from a published folder to a tuned one, and nothing lost on the way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moe_megatron.cli import main
from moe_megatron.config import load_config
from moe_megatron.errors import EXIT_CODE
from moe_megatron.finetuning.adapter_choice import ADAPTER_RATE
from moe_megatron.testing.random_checkpoint import write_random
from moe_megatron.testing.tiny_models import config_of

pytestmark = [pytest.mark.distributed, pytest.mark.deep, pytest.mark.timeout(900)]

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
SHORT = ["--train-iters", "4", "--seq-length", "32", "--micro-batch-size", "2"]
SHORT += ["--set", "training.eval_interval=null"]
EXPERT = "model.layers.1.mlp.experts.2."


@pytest.fixture(scope="module")
def published(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as somebody publishes it: weights in bf16, tokenizer, chat template."""
    folder = tmp_path_factory.mktemp("published") / "olmoe"
    write_random(folder, {**config_of("olmoe"), "vocab_size": 300, "torch_dtype": "bfloat16"})
    for path in tokenizer.iterdir():
        shutil.copy(path, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


@pytest.fixture
def refused(
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[list[Any]], str]:
    """What the command says to words that it refuses before it starts a process."""
    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(cache))

    def said(words: list[Any]) -> str:
        with monkeypatch.context() as here:
            here.chdir(tmp_path)
            assert main.main([str(word) for word in words]) == EXIT_CODE
        return capsys.readouterr().err

    return said


def test_adapters_come_out_merged_and_by_themselves(
    moe: Callable[..., Any], published: Path, corpus: Path, tmp_path: Path
) -> None:
    words = ["finetune", published, corpus, "--output", "tuned", "--num-processes", "2", *SHORT]
    chosen = ["--adapter-rank", "4", "--used-experts", "--share", "0.5"]
    chosen += ["--set", "adapter.alpha=400"]  # by steps so small, in bf16
    done = moe(tmp_path, *words, *chosen)
    assert done.end(500) == 0, done.output
    assert "frozen: " in done.output
    assert "matrices of attention, 0 routers: " in done.output
    run = load_config(str(tmp_path / "tuned" / "run" / "config.yaml"))
    assert run.training.learning_rate == ADAPTER_RATE, "unless somebody gives another one"
    before, after = weights(published), weights(tmp_path / "tuned" / "hf")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert {
        name for name in moved if not any(it in name for it in (".experts.", "_proj."))
    } == set()
    assert {name.split(".")[2] for name in moved if ".experts." in name} == {"0", "1", "2"}
    adapter = tmp_path / "tuned" / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_folder_in_and_folder_out(
    moe: Callable[..., Any],
    refused: Callable[[list[Any]], str],
    published: Path,
    corpus: Path,
    tmp_path: Path,
) -> None:
    words = ["finetune", published, corpus, "--output", "tuned", "--num-processes", "2", *SHORT]
    chosen = ["--train", "experts@2:2", "router", "--freeze", "router@1,3", "--lr", "1e-3"]
    done = moe(tmp_path, *words, *chosen, "--router-learning-rate", "0.5x")
    assert done.end(500) == 0, done.output
    assert "training " in done.output
    assert "frozen: attention, embeddings, output, norms" in done.output
    before, after = weights(published), weights(tmp_path / "tuned" / "hf")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert {name.removeprefix(EXPERT).partition(".")[0] for name in moved} == {
        "gate_proj",
        "up_proj",
        "down_proj",
        "model",
    }
    assert {it for it in moved if not it.startswith(EXPERT)} == {"model.layers.1.mlp.gate.weight"}
    out = tmp_path / "tuned" / "hf"
    assert (out / "chat_template.jinja").read_text() == TEMPLATE
    assert (out / "tokenizer.json").read_bytes() == (published / "tokenizer.json").read_bytes()
    assert json.loads((out / "routing_profile.json").read_text())["steps"] == 4

    # The Megatron checkpoint is a source, too, and says which experts the task used.
    by_use = ["--experts-by-profile", out / "routing_profile.json", "--share", "0.5"]
    words = ["finetune", "tuned/run", corpus, "--output", "again", "--num-processes", "1", *SHORT]
    again = moe(tmp_path, *words, *by_use)
    assert again.end(500) == 0, again.output
    assert "layer 2: " in again.output
    last = weights(tmp_path / "again" / "hf")
    changed = {name for name in after if not torch.equal(after[name], last[name])}
    assert changed
    assert all(".experts." in name for name in changed)

    # Nothing is written over, and what cannot be tuned leaves nothing behind.
    for bad, said in (
        (["finetune", published, corpus, "--output", "tuned"], "exists and is not empty"),
        (["finetune", published, "nowhere.jsonl", "--output", "new"], "nowhere.jsonl"),
        (["finetune", corpus.parent, corpus, "--output", "new"], "config.json"),
        (["finetune", published, corpus, "--output", "new", "--train", "expert"], "'experts'?"),
    ):
        assert said in refused([*bad])
        assert not (tmp_path / "new").exists()
    assert weights(out).keys() == after.keys()


def test_more_is_trained_from_a_step_on(
    moe: Callable[..., Any],
    refused: Callable[[list[Any]], str],
    published: Path,
    corpus: Path,
    tmp_path: Path,
) -> None:
    words = ["finetune", published, corpus, "--output", "tuned", "--num-processes", "1", *SHORT]
    done = moe(tmp_path, *words, "--train", "router", "--unfreeze", "2:experts@2:2", "--lr", "1e-3")
    assert done.end(500) == 0, done.output
    assert "stage 1-to-step-2: to step 2" in done.output
    assert "training experts@2:2, router" in done.output
    before, after = weights(published), weights(tmp_path / "tuned" / "hf")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.startswith(EXPERT) or name.endswith("mlp.gate.weight") for name in moved)
    assert any(name.startswith(EXPERT) for name in moved)

    by_use = ["--used-experts", "--share", "0.6", "--train-iters", "1", "--seq-length", "32"]
    used = moe(tmp_path, "finetune", "tuned/run", corpus, "--output", "used", *by_use)
    assert used.end(500) == 0, used.output
    assert "layer 3: " in used.output
    assert "frozen: router, attention, embeddings, output, norms" in used.output

    late = refused([*words[:3], "--output", "late", *SHORT, "--unfreeze", "4:experts"])
    assert "must change at steps between 0 and training.train_steps (4), not at [4]" in late
    assert not (tmp_path / "late").exists()

    # What was interrupted goes on by the ways of any run.
    stopped = moe(tmp_path, *words[:3], "--output", "half", *SHORT, "--exit-interval", "2")
    assert stopped.end(300) != 0, stopped.output
    resumed = moe(tmp_path, "train", "--resume", "half/run", "--num-processes", "1")
    assert resumed.end(300) == 0, resumed.output
    assert (tmp_path / "half" / "run" / "checkpoints" / "iter_0000004").is_dir()


def test_which_answer_is_preferred_is_learned(
    moe: Callable[..., Any],
    refused: Callable[[list[Any]], str],
    published: Path,
    tmp_path: Path,
) -> None:
    rows = [{"prompt": f"{it}?", "chosen": f"yes {it}", "rejected": "no"} for it in range(12)]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["finetune", published, pairs, "--output", "tuned", "--num-processes", "2", *SHORT]
    wanted = ["--task", "preferences", "--beta", "0.5", "--lr", "1e-3", "--train", "experts"]
    done = moe(tmp_path, *words, *wanted)
    assert done.end(500) == 0, done.output
    assert "computing log-probabilities of all pairs" in done.output
    records = (tmp_path / "tuned" / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in records]
    assert steps[0]["loss"] == pytest.approx(0.6931472, abs=1e-5)
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[-1]["measures"]["reward_margin"] > 0
    before, after = weights(published), weights(tmp_path / "tuned" / "hf")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(".experts." in name for name in moved)

    for bad, said in (
        (["--task", "preference"], "'preferences'"),
        (["--task", "instructions"], "holds pairs of a chosen and a rejected answer"),
        (["--task", "preferences", "--beta", "0"], "preferences.beta"),
        (["--beta", "0.1"], "--beta (0.1) needs --task preferences"),
    ):
        assert said in refused([*words[:3], "--output", "new", *bad])
        assert not (tmp_path / "new").exists()
