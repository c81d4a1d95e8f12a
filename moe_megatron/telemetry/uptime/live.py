"""The account of a run that trains, kept up to date for the exporter.

One thread adds steps and others take the account; the journal is read from where it was last read.
"""

import threading
import time
from pathlib import Path

from moe_megatron.telemetry.journal import JournalReader
from moe_megatron.telemetry.uptime.account import Account, account
from moe_megatron.telemetry.uptime.attempts import Attempts
from moe_megatron.telemetry.uptime.steps import StepTimes
from moe_megatron.telemetry.values.records import StepRecord


class LiveAccount:
    """The account of a run whose last attempt is this process.

    Args:
        run_dir: Folder of the run; its metrics.jsonl must already be rewound.

    Raises:
        DataError: A line of metrics.jsonl is malformed.
    """

    def __init__(self, run_dir: Path) -> None:
        self._lock = threading.Lock()
        self._reader = JournalReader(run_dir)
        self._attempts = Attempts(self._reader.new())
        first = self._attempts.list[0].resumed_step if self._attempts.list else 0
        self._steps = StepTimes.read(run_dir, first)

    def add(self, record: StepRecord) -> None:
        """Add a step."""
        with self._lock:
            self._steps.add(record)

    def rewind(self, last_step: int) -> None:
        """The run went back to this step, as its journal says."""
        with self._lock:
            self._steps.rewind(last_step)

    def take(self) -> Account | None:
        """The account of this moment; None if the journal knows no attempt."""
        with self._lock:
            now = time.time()
            self._attempts.read(self._reader.new())
            return account(self._attempts, self._steps, now, runs=True, recorded_at=now)
