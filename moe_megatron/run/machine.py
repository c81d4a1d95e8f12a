"""What the machine determines about a run: device, communication, layers, precision, and why."""

from dataclasses import dataclass, field
from typing import Any

from moe_megatron.config import RunConfig
from moe_megatron.errors import BackendUnavailableError
from moe_megatron.mcore.loop.environment import prepare_environment
from moe_megatron.mcore.loop.job import MachineSettings
from moe_megatron.platform.choice import Choice
from moe_megatron.platform.device import (
    Device,
    choose_accumulation_fusion,
    choose_backend,
    choose_precision,
    choose_transformer_impl,
    detect_device,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineChoices:
    """The automatic choices for this machine, each with its reason."""

    device: Choice[Device]
    backend: Choice[Any]
    transformer_impl: Choice[Any]
    precision: Choice[str]
    accumulation_fusion: Choice[bool]
    """Whether gradients of weights are added up in the kernel that computes them."""
    settings: MachineSettings = field(repr=False)

    def lines(self) -> list[str]:
        """One readable line per choice."""
        named = {
            "device": self.device,
            "communication": self.backend,
            "layers": self.transformer_impl,
            "precision": self.precision,
        }
        lines = [f"{name}: {choice.value} ({choice.reason})" for name, choice in named.items()]
        if self.transformer_impl.value == "transformer_engine":
            fused = "fused" if self.accumulation_fusion.value else "not fused"
            lines.append(f"gradient accumulation: {fused} ({self.accumulation_fusion.reason})")
        return lines


def choose_machine(config: RunConfig) -> MachineChoices:
    """Choose device, communication, layer implementation and precision.

    Raises:
        BackendUnavailableError: The configuration needs something that this machine lacks.
    """
    prepare_environment(config)
    device = detect_device()
    backend = choose_backend(device.value)
    implementation = choose_transformer_impl(device.value)
    precision: Choice[str] = Choice(value=config.training.precision, reason="it was requested")
    if config.training.precision == "auto":
        chosen = choose_precision(device.value)
        precision = Choice(value=chosen.value, reason=chosen.reason)
    with_engine = implementation.value == "transformer_engine"
    if precision.value == "fp8" and not with_engine:
        raise BackendUnavailableError(
            f"precision fp8 needs Transformer Engine, and {implementation.reason}; use bf16, or a "
            "GPU machine with transformer-engine[pytorch]."
        )
    if not with_engine:
        _check_context_flags(config, implementation.reason)
    fusion = choose_accumulation_fusion()
    grouped_gemm = config.moe.grouped_gemm
    if grouped_gemm is None:  # experts that are modules of their own have no such product
        grouped_gemm = with_engine and config.moe.expert.is_model_mlp
    settings = MachineSettings(
        backend=backend.value,
        transformer_impl=implementation.value,
        precision=precision.value,
        grouped_gemm=grouped_gemm,
        accumulation_fusion=fusion.value,
    )
    return MachineChoices(
        device=device,
        backend=backend,
        transformer_impl=implementation,
        precision=precision,
        accumulation_fusion=fusion,
        settings=settings,
    )


_CONTEXT_FLAGS = {
    "hybrid-context-parallel": "packs sequences",
    "hierarchical-context-parallel-sizes": "nests context groups",
}


def _check_context_flags(config: RunConfig, reason: str) -> None:
    for flag, does in _CONTEXT_FLAGS.items():
        if flag in config.megatron:
            raise BackendUnavailableError(
                f"--{flag} {does}, which needs Transformer Engine's attention, and {reason}; leave "
                "it out (context_parallel_size works without it), or use a GPU machine with "
                "transformer-engine[pytorch]."
            )
