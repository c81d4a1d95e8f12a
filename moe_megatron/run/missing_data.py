"""The data of a run that may be away for a while: a mount that comes back, a file being replaced.

A run that has trained on its data before waits for it, within bounds; then it fails as a process
that can be started again. A first start, and one with other data, refuses at once by name.
"""

import logging
import time
from pathlib import Path

from moe_megatron.config import CONFIG_FILE, RunConfig, load_config
from moe_megatron.errors import DataError, FaultError, MoEError
from moe_megatron.run.prepared_data import PreparedData, prepare_data
from moe_megatron.telemetry.journal import read_events

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 300.0
"""For how long a run waits for its data; ranks wait for each other for longer than that."""
_PAUSE_SECONDS = 2.0


def data_of_run(
    config: RunConfig, *, progress: bool = True, patience: float = PATIENCE_SECONDS
) -> PreparedData:
    """Prepare the data, as `prepare_data`; wait for what the run has used before.

    Raises:
        DataError: It cannot be prepared, and the run has never used it.
        FaultError: It did not come back in time.
    """
    deadline, told = time.monotonic() + patience, False
    while True:
        try:
            return prepare_data(config, progress=progress)
        except DataError as error:
            if not _has_used_it(config):
                raise
            if time.monotonic() >= deadline:
                raise FaultError(
                    f"the data of the run did not come back within {patience:g} s: {error}"
                ) from error
            if not told:
                logger.warning("%s The run has used it, and waits %g s for it.", error, patience)
            told = True
            time.sleep(min(_PAUSE_SECONDS, patience / 4))


def _has_used_it(config: RunConfig) -> bool:
    run_dir = Path(config.run_dir)
    try:
        before = load_config(run_dir / CONFIG_FILE)
    except MoEError:
        return False
    same = before.data.paths == config.data.paths and before.data.tokenizer == config.data.tokenizer
    return same and any(event.kind == "first_step" for event in read_events(run_dir))
