"""`TaskAdaptiveMoE`: tasks one after another, none of which touches another or the base."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron import MoEModel
from moe_megatron.errors import CheckpointError, ConfigError, TopologyError
from moe_megatron.finetuning import TaskAdaptiveMoE
from moe_megatron.mcore import world
from moe_megatron.testing.distributed import run_distributed

SHAPE: dict[str, Any] = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 2}
SHORT: dict[str, Any] = {
    "max_steps": 2,
    "batch_size": 2,
    "sequence_length": 16,
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "num_epochs": 5,
}
CODE, PROSE = ["def f(x):\n    return x + 1\n" * 20], ["Once upon a time there was a king. " * 20]
IDS = torch.arange(24).view(2, 12)


@pytest.fixture
def adaptive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TaskAdaptiveMoE]:
    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(1)
    model = MoEModel(num_experts=4, vocab_size=512, **SHAPE).eval()
    yield TaskAdaptiveMoE(
        model,
        task_embedding_dim=6,
        run_dir=tmp_path / "run",
        overrides={"training.precision": "fp32"},
    )
    world.leave()


def logits(model: MoEModel) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.distributed
@pytest.mark.deep
def test_tasks_stay_as_they_were_bit_for_bit(adaptive, tmp_path):
    base = {name: it.clone() for name, it in adaptive.base.state_dict().items()}
    adaptive.adapt_to_task("code", CODE, **SHORT)
    before = logits(adaptive.model_of("code"))
    adaptive.adapt_to_task("prose", PROSE, freeze_base_experts=False, **SHORT)
    assert adaptive.tasks == ("code", "prose")
    assert torch.equal(logits(adaptive.model_of("code")), before)
    after = adaptive.base.state_dict()
    assert all(torch.equal(after[name], it) for name, it in base.items())
    assert not torch.equal(logits(adaptive.model_of("prose")), before)

    # What was trained for a task is its own experts, and the embedding of each router.
    code, start = adaptive.model_of("code").state_dict(), adaptive._beginning()
    moved = {name for name, it in code.items() if not torch.equal(it, start[name])}
    assert all(".experts.4." in name or name.endswith("task_embedding") for name in moved)
    assert sum(name.endswith("task_embedding") for name in moved) == 2
    assert any(".experts.4." in name for name in moved)
    prose = adaptive.model_of("prose").state_dict()
    assert any(".experts.0." in it for it in prose if not torch.equal(prose[it], start[it]))

    # For a fixed task the embedding is a part of the matrix.
    plain = adaptive.plain("code")
    assert plain.moe_config.router.name == "top_k"
    assert plain.moe_config.num_experts == 5
    torch.testing.assert_close(logits(plain), before, rtol=1e-5, atol=1e-5)
    said = adaptive.generate("def f", task="code", max_new_tokens=4)
    assert said == plain.generate_text("def f", 4)

    adaptive.save(tmp_path / "saved")
    again = TaskAdaptiveMoE.from_pretrained(tmp_path / "saved")
    assert again.tasks == adaptive.tasks
    assert torch.equal(logits(again.model_of("code")), before)
    with pytest.raises(CheckpointError, match="nothing is written over"):
        again.save(tmp_path / "saved")
    report = again.export("code", tmp_path / "hf")
    assert "the tasks prose" in report.left_out[1]
    exported = MoEModel.from_pretrained(tmp_path / "hf")
    torch.testing.assert_close(logits(exported), before, rtol=1e-5, atol=1e-5)

    with pytest.raises(ConfigError, match=r"there is already a task 'code'.*code and prose"):
        adaptive.adapt_to_task("code", CODE)
    with pytest.raises(ConfigError, match=r"no task 'cod'\. Did you mean 'code'\? Tasks are code"):
        adaptive.generate("x", task="cod")
    (tmp_path / "saved" / "task-001.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="is no whole TaskAdaptiveMoE"):
        TaskAdaptiveMoE.from_pretrained(tmp_path / "saved")


def test_mistakes_are_answered(adaptive):
    kind = TaskAdaptiveMoE
    with pytest.raises(ConfigError, match="Tasks are none yet"):
        adaptive.generate("x", task="code")
    with pytest.raises(ConfigError, match=r"task_name \(''\) must be a text"):
        adaptive.adapt_to_task("", CODE)
    with pytest.raises(ConfigError, match="task_embedding_dim"):
        kind(adaptive.base, task_embedding_dim=0)
    bare = kind(adaptive.base, experts_per_task=0)
    with pytest.raises(ConfigError, match="nothing is left to train"):
        bare.adapt_to_task("code", CODE, train_task_router=False)
    with pytest.raises(ConfigError, match="has sparse_mixer; give a MoEModel with"):
        kind(MoEModel(num_experts=4, router_type="sparse_mixer", **SHAPE))
    with pytest.raises(ConfigError, match="the model has no experts; give"):
        kind(MoEModel(num_experts=None, **SHAPE))
    with pytest.raises(
        TopologyError, match=r"size \(2\) must divide .* 4 of the base and 1 of the"
    ):
        kind(adaptive.base, overrides={"parallel.expert_parallel_size": 2})


def adapt(folder: Path, expert_parallel_size: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """On a rank: losses and tensors of a task, without losses that go by a rank's tokens."""
    torch.manual_seed(1)
    layout = {"parallel.expert_parallel_size": expert_parallel_size, "moe.aux_loss_coef": 0.0}
    it = TaskAdaptiveMoE(
        MoEModel(num_experts=4, vocab_size=512, **SHAPE),
        task_embedding_dim=6,
        experts_per_task=2,
        run_dir=folder,
        overrides={"training.precision": "fp32", "telemetry.console": False, **layout},
    )
    losses = it.adapt_to_task("code", CODE, **{**SHORT, "max_steps": 3}).losses
    world.leave()
    return losses, it._task("code")


@pytest.mark.distributed
@pytest.mark.deep
def test_a_task_is_the_same_whatever_processes_share_the_experts(tmp_path: Path) -> None:
    environment = {"MOE_MEGATRON_CACHE": str(tmp_path / "cache")}
    ((alone, task),) = run_distributed(
        adapt, tmp_path / "one", 1, world_size=1, environment=environment
    )
    both = run_distributed(adapt, tmp_path / "two", 2, world_size=2, environment=environment)
    assert both[0][0] == pytest.approx(alone, abs=1e-5)
    assert alone[-1] != pytest.approx(alone[0], abs=1e-3)
    for _, tensors in both:
        assert tensors.keys() == task.keys()
        for name, value in task.items():
            torch.testing.assert_close(tensors[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.distributed
@pytest.mark.deep
@pytest.mark.timeout(600)
def test_the_run_of_a_task_is_resumed_and_shown_without_an_import(
    adaptive: TaskAdaptiveMoE, moe: Callable[..., Any], tmp_path: Path
) -> None:
    adaptive._overrides = {"training.precision": "fp32", "checkpoint.save_interval": 2}
    run = adaptive.adapt_to_task("code", CODE, **SHORT).run_dir
    resumed = moe(tmp_path, "train", "--resume", run, "--num-processes", "1", "--train-iters", "3")
    assert resumed.end(200) == 0, resumed.output
    assert "tokenising" not in resumed.output, "it goes on with the texts that were given"
    assert (run / "checkpoints" / "iter_0000003").is_dir()
    shown = moe(tmp_path, "inspect", run / "checkpoints")
    assert shown.end(100) == 0, shown.output
    assert "task_conditioned" in shown.output
    reported = moe(tmp_path, "report", run)
    assert reported.end(100) == 0, reported.output
