"""What is lost while a model loads or decodes fails that alone, and stops nobody after it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moe_megatron.caching import ExpertCache, Prefetch
from moe_megatron.errors import CheckpointError
from moe_megatron.inference.optimized_model import OptimizedMoEModel
from moe_megatron.inference.quantization.quantize import Recipe, quantize
from moe_megatron.inference.store.pack import pack_experts
from moe_megatron.testing.expert_models import save_model

IDS = torch.arange(18).view(2, 9)
_SLOW = """
import sys, time
from pathlib import Path
{patch}
print("ready", flush=True)
{call}
"""
_LOADING = _SLOW.format(
    patch="""
from moe_megatron.inference.store.hugging_face import HuggingFaceStore
read = HuggingFaceStore.read_into
def slow(self, key, memory):
    read(self, key, memory)
    Path(sys.argv[2]).touch()
    while True:
        time.sleep(0.01)  # a signal that came just before a sleep is answered after it
HuggingFaceStore.read_into = slow
""",
    call="""
import torch
from moe_megatron.inference.optimized_model import OptimizedMoEModel
model = OptimizedMoEModel.from_pretrained(sys.argv[1])
model(torch.arange(9)[None])
""",
)
_EXPORTING = _SLOW.format(
    patch="""
from moe_megatron.inference import exported
def slow(source, folder):
    (folder / "model.safetensors").write_bytes(b"half")
    Path(sys.argv[2]).touch()
    while True:
        time.sleep(0.01)  # a signal that came just before a sleep is answered after it
exported.export_checkpoint = slow
""",
    call="""
from moe_megatron.inference.optimized_model import OptimizedMoEModel
OptimizedMoEModel.from_pretrained(sys.argv[1])
""",
)


def killed(program: str, source: Path, mark: Path) -> None:
    """Run a program until it has set a mark, and kill it."""
    process = subprocess.Popen([sys.executable, "-c", program, str(source), str(mark)])
    try:
        end = time.monotonic() + 120
        while not mark.exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def names(folder: Path) -> set[str]:
    return {str(it.relative_to(folder)) for it in folder.rglob("*")}


@pytest.mark.deep
def test_a_process_killed_while_it_reads_experts_leaves_nothing(tmp_path: Path) -> None:
    folder = save_model("olmoe", tmp_path / "model")
    before = names(folder)
    killed(_LOADING, folder, tmp_path / "mark")
    assert names(folder) == before
    model = OptimizedMoEModel.from_pretrained(folder)
    assert torch.isfinite(model(IDS).logits).all()
    model.close()


@pytest.mark.deep
def test_a_process_killed_while_it_exports_a_checkpoint_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moe_megatron.checkpoint.convert import import_checkpoint

    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(tmp_path / "cache"))
    source = save_model("olmoe", tmp_path / "hf")
    import_checkpoint(source, tmp_path / "megatron")
    killed(_EXPORTING, tmp_path / "megatron", tmp_path / "mark")
    left = {it for it in names(tmp_path / "cache") if "partial" in it or "lock" in it}
    assert left  # what the killed one was at
    whole = OptimizedMoEModel.from_pretrained(source)
    model = OptimizedMoEModel.from_pretrained(tmp_path / "megatron")
    assert torch.equal(model(IDS).logits, whole(IDS).logits)
    assert {it for it in names(tmp_path / "cache") if "partial" in it or "lock" in it} == set()
    model.close()
    whole.close()


def decode(model: OptimizedMoEModel, harm: Callable[[], None] | None = None) -> torch.Tensor:
    """Decode 20 tokens, and do harm before the fifth."""
    forward, steps = model.model.forward, []

    def counted(*given: object, **more: object) -> object:
        steps.append(None)
        if harm is not None and len(steps) == 5:
            harm()
        return forward(*given, **more)

    model.model.forward = counted
    try:
        return model.generate(IDS[:1], max_new_tokens=20, do_sample=False)
    finally:
        model.model.forward = forward
        assert harm is None or len(steps) >= 5


@pytest.mark.parametrize("prefetch", [None, Prefetch(window=10_000)])
@pytest.mark.parametrize("kind", ["folder", "store", "packed"])
def test_what_is_lost_while_decoding_fails_that_request_alone(
    kind: str, prefetch: Prefetch | None, tmp_path: Path
) -> None:
    wide = {"hidden_size": 64, "intermediate_size": 64}
    folder = save_model("mixtral", tmp_path / "model", torch.bfloat16, **wide)
    experts = None
    if kind == "store":
        experts = tmp_path / "store"
        pack_experts(folder, experts, progress=False)
    elif kind == "packed":
        quantize(folder, tmp_path / "few", Recipe(method="rtn", bits=8), progress=False)
        folder = tmp_path / "few"
    model = OptimizedMoEModel.from_pretrained(folder, experts=experts)
    size = 6.5 * model.store.nbytes / 1e9  # the least: every token misses something
    model.set_expert_cache(ExpertCache(size, prefetch=prefetch))
    wanted = decode(model)
    files = [*experts.glob("*.zarr/c/**/0")] if experts else [folder / "model.safetensors"]
    data = {it: it.read_bytes() for it in files if it.is_file()}

    def lose() -> None:
        for it in data:
            os.truncate(it, 3)

    for _ in range(2):
        with pytest.raises(CheckpointError, match="cannot be read"):
            decode(model, lose)
        for it, content in data.items():
            it.write_bytes(content)
        assert torch.equal(decode(model), wanted)
    model.close()
