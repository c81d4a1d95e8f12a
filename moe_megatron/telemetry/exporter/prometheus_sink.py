"""The Prometheus exporter: a sink that keeps the newest state of a run and serves it over HTTP.

Recording a step copies a few numbers; series are built only when Prometheus scrapes. It knows
neither metrics by name (`series`) nor HTTP (`metrics_server`).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry

from moe_megatron.errors import ConfigError
from moe_megatron.telemetry.catalog import fitting_detail, num_series
from moe_megatron.telemetry.exporter.discovery import (
    TARGETS_FILE,
    TargetFiles,
    target_address,
    target_labels,
)
from moe_megatron.telemetry.exporter.earlier_totals import EarlierTotals
from moe_megatron.telemetry.exporter.metrics_server import MetricsServer, ServerOptions
from moe_megatron.telemetry.exporter.run_state import RunState
from moe_megatron.telemetry.exporter.series import RunCollector
from moe_megatron.telemetry.metric import ExpertDetail, Shape
from moe_megatron.telemetry.sinks.health import SinkHealth
from moe_megatron.telemetry.uptime.live import LiveAccount
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExporterOptions:
    """How a run is exported.

    Attributes:
        server: where it is served.
        detail: what to export about single experts; lowered if it needs more than `max_series`.
        max_series: largest number of series in a scrape.
        run_id: the `run` label of every series.
        cluster: the `cluster` label of every series.
        discovery_dir: folder for a target file in addition to the one in the run directory.
    """

    server: ServerOptions = field(default_factory=ServerOptions)
    detail: ExpertDetail = ExpertDetail.HISTOGRAM
    max_series: int = 5000
    run_id: str = "moe"
    cluster: str = "local"
    discovery_dir: Path | None = None


class PrometheusSink:
    """Sink that serves the run to Prometheus.

    To continue the totals of a resumed run it has a second sink, `earlier`, which must come before
    the sinks that write the logs. This one must come after them, so that it publishes nothing that
    the logs do not hold.

    Args:
        options: How to export.
        announce: Receives one line with the address of the metrics.
        registry: Where the collector is registered; a new one by default.
        health: The state of all sinks, which is exported; is told of target files.
    """

    name = "exporter"

    def __init__(
        self,
        options: ExporterOptions,
        announce: Callable[[str], None] = logger.info,
        registry: CollectorRegistry | None = None,
        health: SinkHealth | None = None,
    ) -> None:
        self._health = health or SinkHealth()
        self.earlier = EarlierTotals()
        self.url: str | None = None
        self.run_failed = False
        """If set before `close`, the target files stay, so that Prometheus reports the target as
        down."""
        self._options = options
        self._announce = announce
        self._registry = CollectorRegistry() if registry is None else registry
        self._state: RunState | None = None
        self._live: LiveAccount | None = None
        self._collector: RunCollector | None = None
        self._server: MetricsServer | None = None
        self._targets: TargetFiles | None = None

    def start(self, run: RunInfo) -> None:
        """Starts serving, and writes the target files for Prometheus."""
        options = self._options
        detail = choose_detail(run, options.detail, options.max_series)
        if run.run_dir is not None:
            self._live = LiveAccount(run.run_dir)
        self._state = RunState(
            run,
            self.earlier.until_checkpoint,
            self.earlier.in_logs,
            account=lambda: None if self._live is None else self._live.take(),
        )
        self._server = MetricsServer(self._registry, options.server)
        self._collector = RunCollector(self._state, detail, health=self._health)
        self._registry.register(self._collector)
        address = target_address(options.server.host, self._server.port)
        self.url = f"{self._server.scheme}://{address}/metrics"
        self._announce(f"metrics: {self.url}")
        labels = target_labels(options.run_id, options.cluster, self._server.scheme)
        self._targets = TargetFiles(self._target_paths(run), address, labels, self._health)

    def _target_paths(self, run: RunInfo) -> Sequence[Path]:
        paths = [] if run.run_dir is None else [run.run_dir / TARGETS_FILE]
        if self._options.discovery_dir is not None:
            paths.append(self._options.discovery_dir / f"{self._options.run_id}.json")
        return paths

    def step(self, record: StepRecord, routing: RoutingSnapshot | None) -> None:
        """Records one step."""
        assert self._state is not None
        assert self._targets is not None
        self._targets.keep()
        self._state.add_step(record, routing)
        if self._live is not None:
            self._live.add(record)

    def rewind(self, run: RunInfo) -> None:
        """Keeps the totals, which include steps that are made again, but not the account."""
        if self._live is not None:
            self._live.rewind(run.start_step)

    def evaluation(self, record: EvalRecord) -> None:
        """Records one evaluation."""
        assert self._state is not None
        self._state.add_evaluation(record)

    def close(self) -> None:
        """Deletes the target files, unless the run has failed, and stops serving."""
        if self._targets is not None and not self.run_failed:
            self._targets.remove()
        if self._server is not None:
            self._server.close()
        if self._collector is not None:
            self._registry.unregister(self._collector)
        self._targets = self._server = self._collector = None


def choose_detail(run: RunInfo, wanted: ExpertDetail, max_series: int) -> ExpertDetail:
    """The detail to export: `wanted`, or with a warning the highest that `max_series` allows.

    Raises:
        ConfigError: `max_series` is too small even for the lowest detail.
    """
    shape = Shape(
        layers=len(run.layers),
        experts=run.num_experts,
        ranks=run.world_size,
        expert_ranks=run.expert_ranks,
        tasks=len(run.tasks),
        detail=wanted,
    )
    fitting, needed = fitting_detail(shape, max_series), num_series(shape)
    if fitting is None:
        raise ConfigError(
            f"telemetry.metrics_max_series ({max_series}) is too small for this run, even without "
            "any detail about experts; raise it, or set telemetry.metrics_port to null."
        )
    if fitting != wanted:
        logger.warning(
            "metrics_expert_detail %s needs %d series, but metrics_max_series is %d: exporting %s",
            wanted.name.lower(),
            needed,
            max_series,
            fitting.name.lower(),
        )
    return fitting
