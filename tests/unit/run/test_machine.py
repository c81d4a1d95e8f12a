"""What a run says of the machine, for machines that this one is not."""

import pytest

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.errors import BackendUnavailableError
from moe_megatron.mcore.loop.job import MachineSettings
from moe_megatron.platform.choice import Choice
from moe_megatron.platform.device import DEVICE_VARIABLE, Device, Gpu
from moe_megatron.run.machine import MachineChoices, choose_machine

HOPPER = Gpu(name="H200", compute_capability=(9, 0), memory_bytes=139 * 2**30)


def on_gpu(implementation: str, *, fused: bool) -> list[str]:
    return MachineChoices(
        device=Choice(value=Device(kind="cuda", gpus=(HOPPER,)), reason="torch can use CUDA here"),
        backend=Choice(value="nccl", reason="it connects GPUs directly"),
        transformer_impl=Choice(value=implementation, reason="it is there"),
        precision=Choice(value="bf16", reason="it was requested"),
        accumulation_fusion=Choice(value=fused, reason="the kernel decides"),
        settings=MachineSettings(
            backend="nccl",
            transformer_impl=implementation,
            precision="bf16",
            grouped_gemm=True,
            accumulation_fusion=fused,
        ),
    ).lines()


@pytest.mark.parametrize(("fused", "word"), [(True, "fused"), (False, "not fused")])
def test_engine_says_whether_gradients_are_fused_and_why(fused: bool, word: str) -> None:
    assert on_gpu("transformer_engine", fused=fused) == [
        "device: 1 x H200 (torch can use CUDA here)",
        "communication: nccl (it connects GPUs directly)",
        "layers: transformer_engine (it is there)",
        "precision: bf16 (it was requested)",
        f"gradient accumulation: {word} (the kernel decides)",
    ]


@pytest.mark.parametrize(
    ("flag", "value", "does"),
    [
        ("hybrid-context-parallel", True, "packs sequences"),
        ("hierarchical-context-parallel-sizes", [1, 2], "nests context groups"),
    ],
)
def test_what_local_attention_cannot_split_is_refused(
    flag: str, value: object, does: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEVICE_VARIABLE, "cpu")
    fields = {f"megatron.{flag}": value, "parallel.context_parallel_size": 2}
    config = apply_overrides(load_config("test_tiny"), fields)
    with pytest.raises(BackendUnavailableError) as error:
        choose_machine(config)
    assert str(error.value) == (
        f"--{flag} {does}, which needs Transformer Engine's attention, and Transformer Engine "
        "needs a CUDA device; leave it out (context_parallel_size works without it), or use a GPU "
        "machine with transformer-engine[pytorch]."
    )


def test_local_layers_never_fuse_and_say_nothing_of_it() -> None:
    assert len(on_gpu("local", fused=True)) == 4
