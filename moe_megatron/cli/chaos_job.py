"""The job that `moe-megatron chaos` harms: a run with ranks that can be injured.

Run as a module with `--config FILE --num-processes N`, it is the launcher. As a batch system would,
it goes on from the run's newest checkpoint if there is one. With `--config FILE` alone, it is a
rank.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from moe_megatron.errors import MoEError

PROGRAM = ["-m", "moe_megatron.cli.chaos_job"]
"""The words with which Python starts it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Launch the job, or train on this rank; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "RANK" in os.environ:
        from moe_megatron.chaos.injuries import Injuries
        from moe_megatron.cli.pretrain import main as train

        return train(words, callbacks=[Injuries()])
    try:
        return _launch(words)
    except MoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _launch(words: Sequence[str]) -> int:
    from moe_megatron.config import load_config
    from moe_megatron.run.folder import continued
    from moe_megatron.run.launch import launch

    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--num-processes", type=int, required=True)
    options = parser.parse_args(words)
    return launch(
        continued(load_config(options.config)),
        PROGRAM,
        num_processes=options.num_processes,
        fresh=False,
        say=lambda line: print(line, flush=True),
    ).code


if __name__ == "__main__":
    sys.exit(main())
