"""The shell of a process that a launcher started: how it tells of a failure, and how it leaves.

Nothing here loads torch before the run has done so.
"""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from moe_megatron.errors import FAULT, MoEError
from moe_megatron.platform.death import is_lost_peer, note_failure


def explained(run: Callable[[], int], run_dir: Path, *, debug: bool) -> int:
    """Run, and explain a failure that is nobody's mistake.

    Args:
        run: Gives the exit code.
        run_dir: Folder of the run, whose log takes what the console is spared.
        debug: Show every traceback.

    Returns:
        The exit code.

    Raises:
        MoEError: A mistake, which the launcher has been told of.
    """
    try:
        return run()
    except MoEError as error:
        note_failure(error, error.exit_code)
        raise
    except Exception as error:
        note_failure(error)
        rank = os.environ.get("RANK", "0")
        if debug or not is_lost_peer(error):
            traceback.print_exception(error)
        else:  # the cause is another rank's to tell
            log = run_dir / "logs" / f"rank{rank}.log"
            with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as file:
                traceback.print_exception(error, file=file)
            print(f"rank {rank} lost its connection to another rank", file=sys.stderr)
        return FAULT


def leave_together() -> None:
    """Leave the process groups when all ranks are ready to, deaf to signals from now on."""
    from moe_megatron.mcore import world

    # A launcher that sees one rank leave with a code ends the others, who may still be writing.
    world.wait_for_all()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)
    world.leave()
