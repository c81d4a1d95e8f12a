"""The dashboard of a training, started when its folder is there; it outlives the training.

It shows the run by its folder, as any dashboard does, and takes nothing from the loop.
"""

import sys

from moe_megatron.live.dashboard_process import DashboardProcess
from moe_megatron.live.notebook import display
from moe_megatron.live.watching import in_notebook
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot


class DashboardSink:
    """Starts a dashboard with the run, on any free port, and prints its address.

    In a notebook it shows the page below the cell.
    """

    name = "dashboard"

    def __init__(self) -> None:
        self.process: DashboardProcess | None = None
        # Bound now: Megatron's own output is redirected away from sys.stdout while it runs.
        self._stdout = sys.stdout

    def start(self, run: RunInfo) -> None:
        """Start it."""
        if run.run_dir is not None and self.process is None:
            self.process = DashboardProcess([run.run_dir])
            if in_notebook():
                display(self.process)
            else:
                print(f"dashboard  {self.process.url}", file=self._stdout, flush=True)

    def step(self, record: StepRecord, routing: RoutingSnapshot | None) -> None:
        """Nothing to do: it reads the folder."""

    def evaluation(self, record: EvalRecord) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Leave it open, for what there is to see afterwards."""
