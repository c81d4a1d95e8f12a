"""From adapters that Megatron trains to other programs: what it computes, they compute."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from moe_megatron import MoEModel
from moe_megatron.adapters.exported import export_adapter
from moe_megatron.adapters.merged_folder import merge_folder
from moe_megatron.adapters.merging import merge_into
from moe_megatron.adapters.run_adapter import read_run_adapter
from moe_megatron.checkpoint.convert import Execution, export_checkpoint
from moe_megatron.cli.main import main
from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import Job, few_steps, run_job
from moe_megatron.testing.saved_tensors import whole_tensors
from tests.functional.parallel_logits import parallel_logits

pytestmark = [pytest.mark.distributed]

TOKENS = torch.arange(64).view(2, 32) * 7 % 512
ADAPTED: dict[str, Any] = {
    **few_steps(2),
    "training.learning_rate": 0.02,
    "telemetry.console": False,
    "checkpoint.save_interval": 2,
    "adapter.rank": 4,
}
RANKS = {"adapter.ranks": ["experts@2:0=2", "attention=3"]}
SHARED = {"adapter.experts": "shared_a", "adapter.scaling": "rank_stabilized"}
NORMS = {"adapter.magnitude": True}
LAYOUTS: dict[str, dict[str, Any]] = {
    "ep2": {"parallel.expert_parallel_size": 2},
    "tp2": {"parallel.tensor_parallel_size": 2},
    "pp2": {"parallel.pipeline_parallel_size": 2},
}


class Logits(Callback):
    """Keeps the logits of the trained model."""

    found: torch.Tensor | None = None

    def on_train_end(self, model: list[Any]) -> None:
        with torch.no_grad():
            self.found = parallel_logits(model[0], TOKENS)


def train(root: Path, runs: dict[str, dict[str, Any]]) -> dict[str, torch.Tensor | None]:
    """On every rank: the runs, and what their models compute in the end."""
    from moe_megatron.mcore import world

    found = {}
    for name, overrides in runs.items():
        logits = Logits()
        run_job(Job(run_dir=root / name, overrides={**ADAPTED, **overrides}), (logits,))
        found[name] = None if logits.found is None else logits.found.clone()
    world.leave()
    return found


def check(root: Path, runs: dict[str, dict[str, Any]], world_size: int) -> None:
    computed = run_distributed(train, root, runs, world_size=world_size)[-1]
    for name in runs:
        model = MoEModel.from_pretrained(root / name)
        with torch.no_grad():
            before = model(TOKENS).logits
            merge_into(model, read_run_adapter(root / name))
            after = model(TOKENS).logits
        assert float((after - before).abs().max()) > 0.01, name
        theirs = computed[name][..., : after.shape[-1]]
        torch.testing.assert_close(after, theirs, atol=1e-5, rtol=1e-5, msg=name)


def test_a_run_and_peft_and_the_merged_models_compute_the_same(tmp_path: Path) -> None:
    check(tmp_path, {"ranks": RANKS, "norms": NORMS}, 1)
    run = tmp_path / "ranks"
    adapter = read_run_adapter(run)
    assert adapter["decoder.layers.1.mlp.experts.local_experts.0.linear_fc1.weight"].rank == 2
    assert main(["adapter", "export", str(run), str(tmp_path / "peft")]) == 0
    assert main(["adapter", "merge", str(run), str(tmp_path / "merged")]) == 0
    base = tmp_path / "base"
    export_checkpoint(run, base, base_alone=True, execution=Execution(progress=False))
    transformers = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft = PeftModel.from_pretrained(transformers, tmp_path / "peft").eval()
    with torch.no_grad():
        merged = MoEModel.from_pretrained(tmp_path / "merged")(TOKENS).logits
        torch.testing.assert_close(peft(TOKENS).logits, merged, atol=1e-5, rtol=1e-5)
    # On the base in another format, of the same hash.
    merge_folder(base, tmp_path / "again", adapter=tmp_path / "peft")
    again = MoEModel.from_pretrained(tmp_path / "again").state_dict()
    for key, tensor in MoEModel.from_pretrained(tmp_path / "merged").state_dict().items():
        torch.testing.assert_close(again[key], tensor, atol=1e-6, rtol=1e-5, msg=key)


@pytest.mark.deep
def test_a_run_with_adapters_is_not_exported_as_its_base(tmp_path: Path, capsys: Any) -> None:
    run_distributed(train, tmp_path, {"norms": NORMS}, world_size=1)
    run = tmp_path / "norms"
    assert main(["convert", str(run), str(tmp_path / "hf")]) == 2
    assert "holds adapters beside its base" in capsys.readouterr().err
    assert main(["adapter", "export", str(run), str(tmp_path / "peft")]) == 2
    assert "has magnitudes (DoRA)" in capsys.readouterr().err
    assert sorted(it.name for it in tmp_path.iterdir() if "norms" not in it.name) == ["indices"]
    names = [name for name in whole_tensors_of(run) if "lora_" in name]
    assert names


def whole_tensors_of(run: Path) -> list[str]:
    return list(whole_tensors(run / "checkpoints" / "iter_0000002"))


@pytest.mark.deep
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_adapter_is_whole_whatever_layout_trained_it(layout: str, tmp_path: Path) -> None:
    kinds = {"ranks": RANKS, "shared": SHARED, "norms": NORMS}
    check(tmp_path, {name: {**LAYOUTS[layout], **it} for name, it in kinds.items()}, 2)


@pytest.mark.deep
def test_exported_adapters_name_the_base_that_was_given(tmp_path: Path) -> None:
    run_distributed(train, tmp_path, {"shared": SHARED}, world_size=1)
    adapter = export_adapter(tmp_path / "shared", tmp_path / "peft", base="somebody/a-model")
    assert adapter.keys() == read_run_adapter(tmp_path / "shared").keys()
    assert '"somebody/a-model"' in (tmp_path / "peft" / "adapter_config.json").read_text()
