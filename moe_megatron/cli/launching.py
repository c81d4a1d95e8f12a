"""Runs a configuration for a verb: processes on this machine, and lines on this terminal."""

from argparse import Namespace
from collections.abc import Callable

from moe_megatron.cli.pretrain import program
from moe_megatron.config import RunConfig


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def launcher(ours: Namespace, *, fresh: bool = False) -> Callable[[RunConfig], int]:
    """A function that runs a configuration to its end, and returns an exit code.

    Args:
        ours: What `option_parser` and `--num-processes` have read.
        fresh: Whether the folder of the run must be new.
    """
    from moe_megatron.run.launch import launch  # loads torch, which --help can do without

    def run(config: RunConfig) -> int:
        return launch(
            config,
            program(),
            num_processes=ours.num_processes,
            fresh=fresh,
            debug=ours.debug,
            say=say,
        ).code

    return run
