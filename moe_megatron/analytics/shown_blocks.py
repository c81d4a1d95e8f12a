"""What a `RouterMonitor` counts, as the folder of a run that a dashboard reads.

Each tracked block is a line of routing.jsonl. The folder is temporary and goes with the process. It
does not know models.
"""

import json
import tempfile
from pathlib import Path

from moe_megatron.live.dashboard_process import DashboardProcess
from moe_megatron.telemetry.sinks.appended_file import AppendedFile
from moe_megatron.telemetry.sinks.jsonl import ROUTING_FILE
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot


class ShownBlocks:
    """A folder of blocks, and the dashboard that shows it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="moe_megatron-")
        self.folder = Path(self._folder.name) / "model"
        self.folder.mkdir()
        self._file = AppendedFile(self.folder / ROUTING_FILE)
        self._dashboard: DashboardProcess | None = None
        self.begin()

    def begin(self) -> None:
        """Forget the blocks so far."""
        self._file.close()
        self._file.path.unlink(missing_ok=True)
        self._file.open()

    def add(self, block: RoutingSnapshot) -> None:
        """Show a block."""
        line = json.dumps(block.to_json_dict(), allow_nan=False)
        self._file.append(f"{line}\n".encode())

    def show(self, port: int) -> DashboardProcess:
        """Start the dashboard; one that was started before is ended.

        Raises:
            ConfigError: The port is taken.
        """
        if self._dashboard is not None:
            self._dashboard.close()
        self._dashboard = DashboardProcess([self.folder], port=port)
        return self._dashboard

    def close(self) -> None:
        """End the dashboard, and remove the folder."""
        if self._dashboard is not None:
            self._dashboard.close()
        self._file.close()
        self._folder.cleanup()
