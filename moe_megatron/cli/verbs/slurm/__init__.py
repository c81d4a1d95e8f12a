"""`moe-megatron slurm`: render, submit and watch jobs on a SLURM cluster."""

import importlib
import sys
from collections.abc import Sequence

from moe_megatron.config.checks import join_words, nearest
from moe_megatron.errors import ConfigError

_FOR_PEOPLE = {
    "render": "print the batch script of a run",
    "submit": "put a run into the queue",
    "status": "where a run and its jobs are",
    "logs": "show the output of a run's jobs",
}
_FOR_SCRIPTS = {
    "verdict": "judge an attempt by what it left behind",
    "check-node": "examine this node",
    "node": "start the ranks of this node",
}
_MODULES = {
    "render": "launching",
    "submit": "launching",
    "status": "watching",
    "logs": "watching",
    "verdict": "inside",
    "check-node": "inside",
    "node": "inside",
}

_USAGE = """\
usage: moe-megatron slurm ACTION [OPTIONS]

Render, submit and watch jobs on a SLURM cluster (docs/slurm.md).

actions:
{people}

used by batch scripts:
{scripts}

`moe-megatron slurm ACTION --help` explains an action.

example:
  moe-megatron slurm submit --config mixtral_8x7b --nodes 8 --gpus-per-node 8
"""


def run(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: What follows `moe-megatron slurm`.

    Returns:
        The exit code.

    Raises:
        MoEError: An option cannot be used, the layout does not fit, or SLURM refuses.
    """
    words = list(argv)
    if words and words[0] in {"-h", "--help"}:
        print(_usage(), end="")
        sys.exit(0)  # as argparse does
    action = words[0] if words else ""
    if action not in _MODULES:
        raise ConfigError(
            f"moe-megatron slurm has no action '{action}'.{nearest(action, _MODULES)} "
            f"Actions are: {join_words(list(_FOR_PEOPLE), 'and')}."
        )
    module = importlib.import_module(f"{__name__}.{_MODULES[action]}")
    code: int = getattr(module, action.replace("-", "_"))(words[1:])
    return code


def _usage() -> str:
    people, scripts = (
        "\n".join(f"  {name:<10}  {meaning}" for name, meaning in actions.items())
        for actions in (_FOR_PEOPLE, _FOR_SCRIPTS)
    )
    return _USAGE.format(people=people, scripts=scripts)
