"""From a `RunConfig` to Megatron's parsed arguments.

The flags of the fields come from `config.flags`; this module adds what depends on the machine, and
gives Megatron's parser the result. Megatron's own refusals (assertions, mostly) become
`ConfigError`. It does not know data, models or the loop.
"""

import argparse
import contextlib
import difflib
import functools
import importlib.util
import io
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from megatron.training.arguments import add_megatron_arguments, parse_and_validate_args

from moe_megatron.config import RunConfig
from moe_megatron.config.flags import to_flags
from moe_megatron.errors import ConfigError

_LOCAL_IMPL_FLAGS = (
    "no-gradient-accumulation-fusion no-bias-swiglu-fusion no-bias-gelu-fusion "
    "no-bias-dropout-fusion no-masked-softmax-fusion no-persist-layer-norm no-rope-fusion"
).split()
"""Fused kernels of Apex and Transformer Engine, which the local layers do without."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineSettings:
    """What a run takes from the machine and not from its configuration."""

    backend: str
    """"gloo" or "nccl"."""
    transformer_impl: str
    """"local" or "transformer_engine"."""
    precision: str
    """"fp32", "bf16" or "fp8"; never "auto"."""
    grouped_gemm: bool
    accumulation_fusion: bool
    """Whether the fused weight gradient kernel is there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPaths:
    """Where a run reads and writes, resolved."""

    data: tuple[str, ...]
    """Weights and prefixes as `--data-path` takes them; empty for Megatron's mock data."""
    validation: tuple[str, ...]
    """As `data`, for validation data of its own; empty to split `data`."""
    data_cache: str
    vocab_size: int
    end_of_document: int
    checkpoints: str | None
    """Folder to save checkpoints in; None saves none."""
    load: str | None
    """Folder to load the newest checkpoint from."""


def megatron_argv(config: RunConfig, machine: MachineSettings, paths: RunPaths) -> list[str]:
    """Megatron's command line for a run; flags in `config.megatron` come last and win."""
    words = [
        *_machine_flags(config, machine),
        *_path_flags(config, paths),
        "--attention-softmax-in-fp32",
        "--no-create-attention-mask-in-dataloader",
        # Python lets only the main thread handle signals; a notebook may train in another.
        *(["--exit-signal-handler"] if _in_main_thread() else []),
        *("--dataloader-type", "single"),
        *("--ckpt-format", "torch_dist"),
        *to_flags(_plain_fields(config)),
    ]
    if config.model.max_position_embeddings is None:
        words += ["--max-position-embeddings", str(config.max_position_embeddings)]
    if config.model.ffn_hidden_size is None:
        words += ["--ffn-hidden-size", str(config.model.dense_ffn_size)]
    if config.model.num_query_groups is not None:
        words += ["--group-query-attention"]
    if config.parallel.sequence_parallel is None and config.parallel.choose_sequence_parallel()[0]:
        words += ["--sequence-parallel"]
    if config.training.recompute == "full":
        words += ["--recompute-method", "uniform", "--recompute-num-layers", "1"]
    if config.training.eval_interval is None:
        # Megatron divides by the interval even where it evaluates nothing, and refuses a split that
        # nobody asks a sample of.
        words += ["--eval-iters", "0", "--eval-interval", str(config.training.train_steps)]
        words += ["--split", "100,0,0"]
    return words


def _plain_fields(config: RunConfig) -> RunConfig:
    """The fields whose flags depend on paths and machine are written by those functions."""
    checkpoint = replace(config.checkpoint, load=None, save_interval=None)
    moe = replace(config.moe, grouped_gemm=None)
    return replace(config, checkpoint=checkpoint, moe=moe)


def _machine_flags(config: RunConfig, machine: MachineSettings) -> list[str]:
    words = ["--distributed-backend", machine.backend]
    words += ["--transformer-impl", machine.transformer_impl]
    if machine.backend == "gloo":
        words += ["--use-cpu-initialization"]
    if machine.transformer_impl == "local":
        words += [f"--{flag}" for flag in _LOCAL_IMPL_FLAGS]
    elif not machine.accumulation_fusion:
        words += ["--no-gradient-accumulation-fusion"]
    if machine.grouped_gemm and config.moe.num_experts is not None:
        words += ["--moe-grouped-gemm"]
    if machine.precision in {"bf16", "fp8"}:
        words += ["--bf16"]
    if machine.precision == "fp8":
        if "fp8-format" not in config.megatron:
            words += ["--fp8-format", "hybrid"]
        if config.moe.num_experts is not None and config.moe.token_dispatcher != "allgather":
            # FP8 matrix products take token counts in multiples of 16.
            words += ["--moe-router-padding-for-quantization"]
    return words


def _path_flags(config: RunConfig, paths: RunPaths) -> list[str]:
    words = ["--data-path", *paths.data] if paths.data else ["--mock-data"]
    if paths.validation:
        words = ["--train-data-path", *paths.data, "--valid-data-path", *paths.validation]
    words += ["--data-cache-path", paths.data_cache]
    words += ["--tokenizer-type", "NullTokenizer", "--vocab-size", str(paths.vocab_size)]
    words += ["--null-tokenizer-eod-id", str(paths.end_of_document)]
    if paths.checkpoints is not None:
        words += ["--save", paths.checkpoints]
        words += ["--save-interval", str(config.checkpoint.save_interval)]
    if config.checkpoint.async_save:
        words += ["--use-persistent-ckpt-worker"]
        if importlib.util.find_spec("nvidia_resiliency_ext") is None:
            words += ["--async-strategy", "mcore"]
    if paths.load is not None:
        words += ["--load", paths.load]
        if "use-checkpoint-opt_param-scheduler" not in config.megatron:
            # The configuration decides, also where it differs from that of the checkpoint.
            words += ["--override-opt-param-scheduler"]
    return words


def parse(argv: Sequence[str], *, verbose: bool = False) -> Any:
    """Parse and validate with Megatron's parser, and set its global variables.

    Args:
        argv: As `megatron_argv` writes it.
        verbose: Let Megatron print every argument.

    Raises:
        ConfigError: A flag does not exist, or Megatron refuses the combination.
    """
    check_flags_exist(argv)
    output = contextlib.nullcontext() if verbose else contextlib.redirect_stdout(io.StringIO())
    errors = io.StringIO()
    try:
        with _sys_argv(argv), output, contextlib.redirect_stderr(errors):
            return parse_and_validate_args()
    except (AssertionError, ValueError) as error:
        raise ConfigError(
            f"Megatron refuses these settings: {_reason(error)}. Change the flag or field it "
            "names; --print-config shows the resolved configuration."
        ) from error
    except SystemExit as error:
        problem = errors.getvalue().strip().rpartition("error: ")[2]
        raise ConfigError(f"Megatron cannot read these flags: {problem}.") from error


def _reason(error: Exception) -> str:
    """What an error says; of an assertion without a message, the assertion."""
    return str(error) or f"it demands '{traceback.extract_tb(error.__traceback__)[-1].line}'"


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def prepare_environment(config: RunConfig) -> None:
    """Set the environment variable that Megatron insists on before CUDA starts.

    One hardware queue keeps communication and computation in the order in which tensor and context
    parallelism issue them. A single GPU is faster without it.
    """
    if config.parallel.tensor_parallel_size * config.parallel.context_parallel_size > 1:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def check_flags_exist(argv: Sequence[str]) -> None:
    """Refuse flags that Megatron does not have, naming the nearest one.

    Raises:
        ConfigError: A flag is unknown.
    """
    known = _known_flags()
    for word in argv:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in known:
            near = difflib.get_close_matches(flag, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigError(f"Megatron has no flag {flag}.{hint}")


@functools.cache
def _known_flags() -> frozenset[str]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    return frozenset(add_megatron_arguments(parser)._option_string_actions)


@contextlib.contextmanager
def _sys_argv(argv: Sequence[str]) -> Iterator[None]:
    """Megatron's parser reads `sys.argv` and nothing else."""
    saved = sys.argv
    sys.argv = [saved[0] if saved else "moe_megatron", *argv]
    try:
        yield
    finally:
        sys.argv = saved
