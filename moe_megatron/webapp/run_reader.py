"""One run that somebody looks at: everything its folder says, followed while it grows.

`refresh` reads what is new, and nothing twice; a question is answered from what was read and from
windows of the history. Memory does not grow with the run, but for its list of times. Several
threads may ask: each holds `lock` meanwhile. It knows files, not who asks.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from moe_megatron.config import CONFIG_FILE, RunConfig, load_config
from moe_megatron.config.checkpoint_files import CHECKPOINTS, folders_by_step
from moe_megatron.errors import MoEError
from moe_megatron.reading import read_text
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, parse_metrics_line
from moe_megatron.telemetry.uptime.present import account_at, modified
from moe_megatron.telemetry.uptime.steps import StepTimes
from moe_megatron.telemetry.values.profile import PROFILE_FILE, RoutingProfile
from moe_megatron.telemetry.values.records import StepRecord
from moe_megatron.webapp.price import Price
from moe_megatron.webapp.routing_windows import RoutingWindows
from moe_megatron.webapp.run_events import RunEvents
from moe_megatron.webapp.run_facts import RunFacts, facts_of, state_of
from moe_megatron.webapp.run_samples import RunSamples
from moe_megatron.webapp.step_table import StepTable
from moe_megatron.webapp.tail import Tail
from moe_megatron.webapp.token_texts import TokenTexts

_MOST_CONFIG_BYTES = 2**20


class RunReader:
    """A run.

    Args:
        run_dir: Its folder.
        show_tokens: Whether text of training data may be shown.
        price: What a device costs; None where nobody said.

    Raises:
        DataError: A file of it is damaged.
    """

    def __init__(
        self, run_dir: Path, *, show_tokens: bool = False, price: Price | None = None
    ) -> None:
        self.run_dir = run_dir
        self.show_tokens = show_tokens
        self.price = price
        self.lock = threading.RLock()
        self.windows = RoutingWindows(run_dir)
        self.samples = RunSamples(run_dir)
        self.token_texts = TokenTexts()
        self.events = RunEvents(run_dir)
        self.steps = StepTable()
        self._times = StepTimes()
        self._metrics = Tail(run_dir / METRICS_FILE)
        self._config: tuple[float, RunConfig | None] = (-1.0, None)
        self._profile: tuple[Path, RoutingProfile] | None = None
        self.refresh()

    def refresh(self) -> None:
        """Read what is new.

        Raises:
            DataError: A file is damaged.
        """
        with self.lock:
            if self.events.refresh():
                self.windows.forget()
            self.windows.refresh()
            for line in self._metrics.read(self._begin_anew):
                record = parse_metrics_line(line)
                self.steps.add(record)
                if isinstance(record, StepRecord):
                    self._times.add(replace(record, measures={}))

    def _begin_anew(self) -> None:
        self.steps, self._times = StepTable(), StepTimes()
        self.windows.forget()

    @property
    def facts(self) -> RunFacts:
        """What a list says of it, with what is known by now."""
        with self.lock:
            found = facts_of(self.run_dir)
            windows = self.windows
            return replace(
                found,
                first_step=windows.first_step or found.first_step,
                last_step=max(windows.last_step, self.steps.last_step),
            )

    @property
    def span(self) -> tuple[int, int]:
        """First and last step on record; (1, 0) while there is none."""
        windows, steps = self.windows, self.steps
        firsts = [it for it in (windows.first_step, steps.first_step) if it]
        return (min(firsts), max(windows.last_step, steps.last_step)) if firsts else (1, 0)

    @property
    def state(self) -> str:
        """See `RunFacts.state`."""
        return state_of(self.run_dir, self.events.attempts, self.span[1])

    @property
    def config_text(self) -> str:
        """Its config.yaml; "" where there is none."""
        try:
            return read_text(self.run_dir / CONFIG_FILE, _MOST_CONFIG_BYTES, errors="replace")
        except OSError:
            return ""

    @property
    def config(self) -> RunConfig | None:
        """Its configuration; None where there is none that this version reads."""
        path = self.run_dir / CONFIG_FILE
        try:
            modified = path.stat().st_mtime
            if self._config[0] != modified:
                self._config = (modified, load_config(path))
        except OSError:
            return None
        except MoEError:
            self._config = (modified, None)
        return self._config[1]

    @property
    def checkpoints(self) -> dict[int, Path]:
        """Folders of its checkpoints by step, oldest first."""
        try:
            return dict(sorted(folders_by_step(self.run_dir / CHECKPOINTS).items()))
        except OSError:
            return {}

    @property
    def profile(self) -> RoutingProfile | None:
        """The routing profile beside its newest checkpoint that has one."""
        for folder in reversed(self.checkpoints.values()):
            path = folder / PROFILE_FILE
            if not path.is_file():
                continue
            if self._profile is None or self._profile[0] != path:
                self._profile = (path, RoutingProfile.load(path))
            return self._profile[1]
        return None

    @property
    def best_step(self) -> int | None:
        """The checkpoint whose evaluation was best, of those that are there."""
        there = self.checkpoints.keys()
        found = [it for it in self.steps.evaluations if it.step in there and it.loss == it.loss]
        validated = [it for it in found if it.split == "validation"]
        return min(validated, key=lambda it: (it.loss, -it.step)).step if validated else None

    def expert_ranks(self) -> list[list[int]]:
        """The expert parallel process of each expert, [layers][experts]; [] for a single one."""
        config, shape = self.config, self.windows.shape
        size = 1 if config is None else config.parallel.expert_parallel_size
        if shape is None or size <= 1 or shape.num_experts % size:
            return []
        each = shape.num_experts // size
        return [[number // each for number in range(shape.num_experts)] for _ in shape.layers]

    def phases(self) -> Mapping[str, float]:
        """Share of the wall time by what it went into, as `moe-megatron uptime` says."""
        used = account_at(
            self.events.attempts,
            self._times,
            modified(self.run_dir / METRICS_FILE),
            time.time(),
            running=self.state == "running",
        )
        if used is None or used.wall <= 0:
            return {}
        return {name: seconds / used.wall for name, seconds in used.rows().items()}
