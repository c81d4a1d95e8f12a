"""One of the processes that a trainer starts: `python -m moe_megatron.training.rank`.

It trains what was handed over, as the trainer does, and hands the result back.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from moe_megatron.config import RunConfig, load_config
from moe_megatron.errors import INTERRUPTED, MoEError
from moe_megatron.experts import expert_given_again
from moe_megatron.files import user_path
from moe_megatron.mcore import world
from moe_megatron.routing import given_again
from moe_megatron.run.rank_process import explained, leave_together
from moe_megatron.run.start import Attachments, start
from moe_megatron.training.exchange import exchange_of
from moe_megatron.training.handover import Handover


def main(argv: Sequence[str] | None = None) -> int:
    """Train on this rank.

    Args:
        argv: The words of the command line; None reads those of this process.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--handover", type=user_path, required=True)
    parser.add_argument("--config", type=user_path, required=True)
    parser.add_argument("--router", help="file and function of a router of the user's own")
    parser.add_argument("--expert", help="file and class of an expert of the user's own")
    parser.add_argument("--debug", action="store_true")
    given = parser.parse_args(argv)
    handover = Handover(given.handover)
    config = load_config(given.config)
    try:
        if given.router is not None:
            given_again(given.router, config.moe.router)
        if given.expert is not None:
            expert_given_again(given.expert, config.moe.expert)
        run_dir = Path(config.run_dir)
        return explained(lambda: _train(config, handover), run_dir, debug=given.debug)
    except MoEError as error:
        handover.refuse(error)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


def _train(config: RunConfig, handover: Handover) -> int:
    model, data = handover.take()
    exchange = exchange_of(config, model, handover.take_adapters())
    attached = Attachments(callbacks=[exchange], model_hooks=[exchange.load])
    result = start(config, data=data, attached=attached)
    if world.rank() == 0:
        handover.give_back(result, exchange.trained)
    leave_together()
    return result.exit_code


# The guard matters: asynchronous checkpoint writers import this file again.
if __name__ == "__main__":
    sys.exit(main())
