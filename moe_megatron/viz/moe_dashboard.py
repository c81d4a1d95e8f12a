"""`MoEDashboard`: the dashboard of a run, or of a model in memory, from Python.

The server is a process of its own (`live.dashboard_process`); the page is the same that
`moe-megatron dashboard` serves.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from moe_megatron.analytics.monitor import RouterMonitor
from moe_megatron.config.arguments import explained
from moe_megatron.config.checks import join_words, nearest
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.files import user_path
from moe_megatron.live.dashboard_process import PORT, DashboardProcess
from moe_megatron.telemetry.sinks.jsonl import ROUTING_FILE
from moe_megatron.webapp.report import write_report

if TYPE_CHECKING:
    from torch import nn

_VIEWS = {
    "expert_load_distribution": "routing",
    "routing_heatmap": "routing",
    "token_flow_sankey": "flow",
    "compute_cost_timeline": "cost",
}
"""Where on the page each metric is shown."""


@explained
class MoEDashboard:
    """Shows the routers of a run or of a model in a browser.

        dashboard = MoEDashboard("runs/demo_moe")
        dashboard.start(port=8080)

        dashboard = MoEDashboard(model)
        dashboard.start(port=8080)
        with dashboard.track():
            model(input_ids)        # one step of what is shown
        dashboard.export_report("moe_analysis.html")

    Args:
        source: the folder of a run or of several, what `MoETrainer.train` returned, or a model; or
            a list of such folders and results, which are compared.

    Raises:
        ConfigError: it is none of these, or a model without routers.
    """

    def __init__(self, source: Union[str, Path, "nn.Module", Sequence[Any], Any]) -> None:
        self._monitor: RouterMonitor | None = None
        self._folders: list[Path] = []
        model: Any = source
        if callable(getattr(source, "named_modules", None)):
            self._monitor = RouterMonitor(model)
        elif isinstance(source, list | tuple) and source:
            self._folders = [_folder(it) for it in source]
        else:
            self._folders = [_folder(source)]
        self._process: DashboardProcess | None = None

    def start(self, port: int = PORT, metrics: Sequence[str] = ()) -> DashboardProcess:
        """Start the server; one that this object has started before is ended.

        Args:
            port: on this machine; 0 for any free one.
            metrics: what is wanted, the first is what the page opens with:
                "expert_load_distribution", "routing_heatmap", "token_flow_sankey" or
                "compute_cost_timeline".

        Returns:
            The server, with its address as `url`; a notebook shows the page below the cell.

        Raises:
            ConfigError: The port is taken, or there is no such metric.
        """
        for name in metrics:
            if name not in _VIEWS:
                raise ConfigError(
                    f"there is no metric '{name}'.{nearest(name, _VIEWS)} Metrics are: "
                    f"{join_words(list(_VIEWS), 'and')}."
                )
        self.close()
        if self._monitor is not None:
            self._process = self._monitor.start_dashboard(port)
        else:
            self._process = DashboardProcess(self._folders, port=port)
        if metrics:
            self._process.go_to(f"view={_VIEWS[metrics[0]]}")
        return self._process

    def track(self) -> AbstractContextManager[None]:
        """Count every forward pass of the model inside the block, as one step of what is shown.

        Raises:
            DataError: This dashboard shows a run, which counts by itself.
        """
        if self._monitor is None:
            raise DataError("a run counts its steps itself; track() is for a dashboard of a model.")
        self._monitor.keep_blocks()
        return self._monitor.track()

    def export_report(self, output: str | Path) -> Path:
        """Write one HTML file that needs no server: the page with what it shows of the runs.

        Args:
            output: The file.

        Returns:
            The file written.

        Raises:
            DataError: The run has no step yet, or no block of the model was tracked.
        """
        if self._monitor is None:
            return write_report(self._folders, user_path(str(output)))
        if not self._monitor.keep_blocks().joinpath(ROUTING_FILE).stat().st_size:
            raise DataError(
                "no block of the model was tracked yet; run the model under `with "
                "dashboard.track():` first."
            )
        return write_report(self._monitor.keep_blocks(), user_path(str(output)))

    def close(self) -> None:
        """End the server; a second call does nothing."""
        if self._process is not None:
            self._process.close()
            self._process = None


def _folder(source: object) -> Path:
    """The folder of a run, given by itself or by what a training returned."""
    run_dir = getattr(source, "run_dir", None)
    if isinstance(source, str | Path):
        return user_path(str(source))
    if isinstance(run_dir, str | Path):
        return Path(run_dir)
    raise ConfigError(
        f"a dashboard shows the folder of a run or a model, not {type(source).__name__}; give "
        '"runs/demo_moe", for example.'
    )
