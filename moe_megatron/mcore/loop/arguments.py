"""From a `RunConfig` to Megatron's parsed arguments.

The flags of the fields come from `config.flags`; this module adds what depends on the machine and
passes the result to Megatron's parser. Megatron's own errors (mostly assertions) become
`ConfigError`. It does not know data, models or the loop.
"""

import argparse
import contextlib
import difflib
import functools
import importlib.util
import io
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from megatron.training.argument_utils import ArgumentGroupFactory
from megatron.training.arguments import add_megatron_arguments, parse_and_validate_args

from moe_megatron.config import RunConfig
from moe_megatron.config.flags import to_flags
from moe_megatron.errors import ConfigError
from moe_megatron.mcore import world
from moe_megatron.mcore.loop.job import MachineSettings

logger = logging.getLogger(__name__)

_LOCAL_IMPL_FLAGS = (
    "no-gradient-accumulation-fusion no-bias-swiglu-fusion no-bias-gelu-fusion "
    "no-bias-dropout-fusion no-masked-softmax-fusion no-persist-layer-norm no-rope-fusion"
).split()
"""Flags that switch off fused kernels of Apex and Transformer Engine, for the local layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPaths:
    """Resolved paths that a run reads and writes, and the tokenizer's numbers."""

    data: tuple[str, ...]
    """Weights and prefixes as `--data-path` takes them; empty for Megatron's mock data."""
    validation: tuple[str, ...]
    """As `data`, for separate validation data; empty to split `data`."""
    data_cache: str
    vocab_size: int
    end_of_document: int
    checkpoints: str | None
    """Folder to save checkpoints in; None saves none."""
    load: str | None
    """Folder to load the newest checkpoint from."""
    load_step: int | None = None
    instructions: bool = False
    """Whether the data is instruction data, of which answers alone are learned."""
    """Step of the checkpoint to load, if it is not the newest."""


def megatron_argv(config: RunConfig, machine: MachineSettings, paths: RunPaths) -> list[str]:
    """Megatron's command line for a run; flags in `config.megatron` come last and win."""
    words = [
        *_machine_flags(config, machine),
        *_path_flags(config, machine, paths),
        "--attention-softmax-in-fp32",
        "--no-create-attention-mask-in-dataloader",
        # Python allows signal handlers only in the main thread; a notebook may train in another.
        *(["--exit-signal-handler"] if _in_main_thread() else []),
        *("--dataloader-type", "single"),
        *("--ckpt-format", "torch_dist"),
        # Megatron would end the run with a traceback; the policies of mcore/recovery decide.
        "--no-check-for-nan-in-loss-and-grad",
        *to_flags(_plain_fields(config)),
    ]
    if config.model.max_position_embeddings is None:
        words += ["--max-position-embeddings", str(config.max_position_embeddings)]
    if config.model.ffn_hidden_size is None:
        words += ["--ffn-hidden-size", str(config.model.dense_ffn_size)]
    if config.model.num_query_groups is not None:
        words += ["--group-query-attention"]
    if config.moe.expert_bias and config.moe.router.option("score_function") is None:
        # Megatron wants to know it for a bias of its own router; another router computes here.
        words += ["--moe-router-score-function", "sigmoid"]
    if config.moe.top_k == 1 and config.moe.router.option("score_function") is None:
        # Megatron wants it for one expert a token of its own router; another router computes here.
        words += ["--moe-router-pre-softmax"]
    if config.parallel.sequence_parallel is None and config.parallel.choose_sequence_parallel()[0]:
        words += ["--sequence-parallel"]
    if config.training.recompute == "full":
        words += ["--recompute-method", "uniform", "--recompute-num-layers", "1"]
    if config.training.eval_interval is None:
        # Megatron divides by the interval even if it never evaluates, and refuses a split from
        # which no sample is requested.
        words += ["--eval-iters", "0", "--eval-interval", str(config.training.train_steps)]
        words += ["--split", "100,0,0"]
    return words


def _plain_fields(config: RunConfig) -> RunConfig:
    """The run without the fields whose flags `_path_flags` and `_machine_flags` write."""
    checkpoint = replace(config.checkpoint, load=None, save_interval=None)
    moe = replace(config.moe, grouped_gemm=None)
    return replace(config, checkpoint=checkpoint, moe=moe)


def _machine_flags(config: RunConfig, machine: MachineSettings) -> list[str]:
    words = ["--distributed-backend", machine.backend]
    words += ["--transformer-impl", machine.transformer_impl]
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
            # FP8 matrix products need token counts that are multiples of 16.
            words += ["--moe-router-padding-for-quantization"]
    return words


def _path_flags(config: RunConfig, machine: MachineSettings, paths: RunPaths) -> list[str]:
    words = ["--data-path", *paths.data] if paths.data else ["--mock-data"]
    if paths.validation:
        words = ["--train-data-path", *paths.data, "--valid-data-path", *paths.validation]
    words += ["--data-cache-path", paths.data_cache]
    if paths.instructions:  # every learned token of a step counts the same
        words += ["--calculate-per-token-loss"]
    words += ["--tokenizer-type", "NullTokenizer", "--vocab-size", str(paths.vocab_size)]
    words += ["--null-tokenizer-eod-id", str(paths.end_of_document)]
    if paths.checkpoints is not None:
        words += ["--save", paths.checkpoints]
        words += ["--save-interval", str(config.checkpoint.save_interval)]
    if "wandb-project" in config.megatron and "wandb-save-dir" not in config.megatron:
        # Megatron would put W&B's files among the checkpoints, whatever W&B's own variable says.
        words += ["--wandb-save-dir", os.environ.get("WANDB_DIR") or config.run_dir]
    if config.checkpoint.async_save:
        words += ["--use-persistent-ckpt-worker"]  # without it, Megatron saves synchronously
        extension = importlib.util.find_spec("nvidia_resiliency_ext")
        if machine.backend == "gloo" or extension is None:
            words += ["--async-strategy", "mcore"]
    if paths.load is not None:
        words += ["--load", paths.load]
        words += [] if paths.load_step is None else ["--ckpt-step", str(paths.load_step)]
        if "use-checkpoint-opt_param-scheduler" not in config.megatron:
            # The configuration wins where it differs from that of the checkpoint.
            words += ["--override-opt-param-scheduler"]
    return words


def parse(argv: Sequence[str], *, verbose: bool = False) -> Any:
    """Parse and validate with Megatron's parser, and set its global variables.

    Args:
        argv: As `megatron_argv` writes it.
        verbose: Let Megatron print every argument.

    Raises:
        ConfigError: A flag does not exist, or Megatron refuses the combination. What it takes and
            then changes is a warning.
    """
    check_flags_exist(argv)
    output = contextlib.nullcontext() if verbose else contextlib.redirect_stdout(io.StringIO())
    errors = io.StringIO()
    try:
        with sys_argv(argv), output, contextlib.redirect_stderr(errors), _without_help():
            args = parse_and_validate_args()
    except (AssertionError, ValueError) as error:
        raise ConfigError(
            f"Megatron refuses these settings: {_reason(error)}. Change the flag or field that it "
            "names; --print-config shows the resolved configuration."
        ) from error
    except SystemExit as error:
        problem = errors.getvalue().strip().rpartition("error: ")[2]
        raise ConfigError(f"Megatron cannot read these flags: {problem}.") from error
    if world.rank() == 0:
        for change in _changed(argv, args):
            logger.warning("Megatron does not do what was asked: %s: %s became %s", *change)
    return args


def _changed(argv: Sequence[str], args: Any) -> Iterator[tuple[str, Any, Any]]:
    """Flags whose values are no longer those that were given, with what they were and are."""
    parser = _parser()
    asked = parser.parse_args(argv)
    for flag in dict.fromkeys(word.partition("=")[0] for word in argv):
        action = parser._option_string_actions.get(flag)
        if action is None:
            continue
        given, done = getattr(asked, action.dest), getattr(args, action.dest, None)
        # What is of another type, or gone, Megatron has read into what it means.
        if type(given) is type(done) and given != done:
            yield flag, given, done


def _reason(error: Exception) -> str:
    """The message of an error; for an assertion without one, its source line."""
    return (
        str(error).rstrip(".")
        or f"it demands '{traceback.extract_tb(error.__traceback__)[-1].line}'"
    )


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def check_flags_exist(argv: Sequence[str]) -> None:
    """Refuse flags that Megatron does not have, suggesting the nearest one.

    Raises:
        ConfigError: A flag is unknown.
    """
    known = known_flags()
    for word in argv:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in known:
            near = [_MEANT[flag]] if flag in _MEANT else difflib.get_close_matches(flag, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigError(f"Megatron has no flag {flag}.{hint}")


_MEANT = {
    "--learning-rate": "--lr",
    "--batch-size": "--global-batch-size",
    "--epochs": "--train-iters",
    "--num-epochs": "--train-iters",
    "--num-train-epochs": "--train-iters",
    "--max-steps": "--train-iters",
    "--steps": "--train-iters",
    "--sequence-length": "--seq-length",
    "--seq-len": "--seq-length",
    "--top-k": "--moe-router-topk",
    "--dropout": "--hidden-dropout",
    "--warmup-steps": "--lr-warmup-iters",
    "--output-dir": "--run-dir",
}
"""What other programs call a flag, and what it is called here."""


def known_flags() -> frozenset[str]:
    """Every flag of Megatron, with its hyphens."""
    return frozenset(_parser()._option_string_actions)


@functools.cache
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    with _without_help():
        add_megatron_arguments(parser)
    return parser


@contextlib.contextmanager
def _without_help() -> Iterator[None]:
    """Let Megatron's parsers not read their help texts from its source meanwhile; none is shown.

    The parser itself is not shared: runs extend lists that are its defaults.
    """
    read = ArgumentGroupFactory._get_field_docstrings
    ArgumentGroupFactory._get_field_docstrings = lambda self, config_class: {}
    try:
        yield
    finally:
        ArgumentGroupFactory._get_field_docstrings = read


@contextlib.contextmanager
def sys_argv(argv: Sequence[str]) -> Iterator[None]:
    """Replace `sys.argv`, the only place from which Megatron's parser reads, meanwhile."""
    saved = sys.argv
    sys.argv = [saved[0] if saved else "moe_megatron", *argv]
    try:
        yield
    finally:
        sys.argv = saved
