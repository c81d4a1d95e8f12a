"""`moe-megatron train`: prepare, choose what the machine decides, and start the processes.

Everything that can be wrong is checked here, before any process starts: a mistake costs a second.
The processes run cli/pretrain.py.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_megatron.cli.pretrain import DEFAULT_CONFIG, PretrainOptions, option_parser, parse_options
from moe_megatron.config import RunConfig, dump_yaml
from moe_megatron.errors import CheckpointError
from moe_megatron.platform.choice import Choice

_EPILOG = """\
examples:
  moe-megatron train
  moe-megatron train --config demo_moe --train-iters 50 --set moe.top_k=4
  moe-megatron train --resume runs/demo_moe"""

_SCRIPT = Path(__file__).parents[2] / "pretrain_moe.py"


def train(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: What follows `moe-megatron train`.

    Returns:
        The exit code.

    Raises:
        MoEError: The run cannot start.
    """
    parser = option_parser(prog="moe-megatron train")
    parser.epilog = _EPILOG
    parser.add_argument("--resume", metavar="DIR", help="go on with the run in this folder")
    parser.add_argument("--num-processes", type=int, help="processes to start on this machine")
    ours, _ = parser.parse_known_args(argv)
    words = _without(argv, "--resume", "--num-processes")
    if ours.resume is not None:
        words = [*_resume_words(Path(ours.resume), argv), *words]
    options = parse_options(words)
    if options.print_config:
        print(dump_yaml(options.config), end="")
        return 0
    return _launch(options, words, ours)


def _launch(options: PretrainOptions, words: list[str], ours: Any) -> int:
    # Imported here: --help and --print-config need no torch.
    from moe_megatron.platform.device import choose_num_processes, detect_device
    from moe_megatron.platform.launch import run_torchrun, torchrun_command
    from moe_megatron.run.prepared_data import prepare_data
    from moe_megatron.run.run_dir import fresh_run_dir

    config, device = options.config, detect_device()
    processes = choose_num_processes(device.value, ours.num_processes)
    print(f"processes: {processes}")
    experts = choose_expert_parallel_size(config, processes.value)
    if experts.value != config.parallel.expert_parallel_size:
        print(f"expert parallel size: {experts}")
        words = [*words, "--expert-model-parallel-size", str(experts.value)]
        options = parse_options(words)
    options.config.validate(processes.value)
    _check_megatron_flags(options.config)
    prepare_data(options.config)
    if ours.resume is None:
        run_dir = fresh_run_dir(Path(options.config.run_dir))
        words = [*_without(words, "--run-dir"), "--run-dir", str(run_dir)]
    target = [str(_SCRIPT)] if _SCRIPT.exists() else ["-m", "moe_megatron.cli.pretrain"]
    shown = " ".join(["pretrain_moe.py", *words])
    print(f"running: torchrun --nproc-per-node {processes.value} {shown}", flush=True)
    command = torchrun_command(processes.value, [*target, *words])
    return run_torchrun(command, debug=options.debug)


def _check_megatron_flags(config: RunConfig) -> None:
    # Importing Megatron takes seconds, so only where flags of its own were given.
    if config.megatron:
        from moe_megatron.mcore.loop.arguments import check_flags_exist

        check_flags_exist([f"--{flag}" for flag in config.megatron])


def choose_expert_parallel_size(config: RunConfig, num_processes: int) -> Choice[int]:
    """Fit the configured expert parallelism to the number of processes.

    Returns:
        The configured size where it fits, else the largest that does.
    """
    configured, parallel = config.parallel.expert_parallel_size, config.parallel
    per_expert_group = parallel.expert_tensor_size * parallel.pipeline_parallel_size
    available = num_processes // per_expert_group if num_processes % per_expert_group == 0 else 0
    if available == 0 or available % configured == 0:
        return Choice(value=configured, reason="it is configured and fits")
    fitting = math.gcd(available, config.moe.num_experts or 1)
    return Choice(
        value=fitting,
        reason=f"{configured} is configured, but does not fit {num_processes} process(es)",
    )


def _resume_words(run_dir: Path, argv: Sequence[str]) -> list[str]:
    config, checkpoints = run_dir / "config.yaml", run_dir / "checkpoints"
    if not config.exists():
        raise CheckpointError(
            f"{run_dir} holds no run to resume ({config.name} is missing). Give the folder of a "
            "run, such as runs/demo_moe."
        )
    if not (checkpoints / "latest_checkpointed_iteration.txt").exists():
        raise CheckpointError(
            f"{run_dir} holds no checkpoint to resume from: it ended before the first one, or "
            "checkpoint.save_interval was null. Start it again with: moe-megatron train --config "
            f"{config}"
        )
    words = ["--run-dir", str(run_dir), "--load", str(checkpoints)]
    return words if "--config" in argv else ["--config", str(config), *words]


def _without(argv: Sequence[str], *options: str) -> list[str]:
    kept, skip = [], False
    for word in argv:
        name = word.partition("=")[0]
        if skip:
            skip = False
        elif name in options:
            skip = "=" not in word
        else:
            kept.append(word)
    return kept


__all__ = ["DEFAULT_CONFIG", "choose_expert_parallel_size", "train"]

if __name__ == "__main__":
    sys.exit(train(sys.argv[1:]))
